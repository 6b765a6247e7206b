-- What the server tells of something as a flat list of names and values, by name. Stands before the scripts that need it, as
-- none can load another.

local function fields(told)
  local found = {}
  for i = 1, #told, 2 do
    found[told[i]] = told[i + 1]
  end
  return found
end

