-- Makes a group, and with it an empty stream where there is none yet, and notes up to where it has settled; see settled.lua.
--
-- KEYS[1]  the stream
-- ARGV[1]  the name of the group
-- ARGV[2]  the name of the group that holds the note
-- ARGV[3]  the position that both are to be at; the first stays where it is when it is there
--
-- Nothing is written that is there already: making a group, which is refused then too, needs memory, and a server that is full
-- would never be emptied by a consumer that starts.

local at = {}

if redis.call('EXISTS', KEYS[1]) == 1 then
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local field = fields(group)
    at[field['name']] = field['last-delivered-id']
  end
end

if at[ARGV[1]] == nil then
  redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], ARGV[3], 'MKSTREAM')
end
if at[ARGV[2]] == nil then
  redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[2], ARGV[3])
elseif at[ARGV[2]] ~= ARGV[3] then
  redis.call('XGROUP', 'SETID', KEYS[1], ARGV[2], ARGV[3])
end

return 0
