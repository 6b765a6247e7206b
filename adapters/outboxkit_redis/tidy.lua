-- Forgets a group's readers that hold nothing and were not heard of for long; but never the one that was heard of last, as it
-- tells when the group showed a sign of life. One that comes back is made anew by its first read.
--
-- KEYS[1]  the stream
-- ARGV[1]  the group
-- ARGV[2]  how long, in milliseconds
--
-- "idle" is the time since a reader last tried to read or to claim, and not "inactive", since that last brought something: who
-- reads a stream where nothing happens is not gone. Before Redis 7.2 they are the same, and such a name goes and comes again.

local latest = nil
local gone = {}

-- Where the group is lost there is nothing to do, and to whom deleting is not allowed it is not worth an error.
local readers = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])
for _, reader in ipairs(readers) do
  local field = fields(reader)
  if latest == nil or field['idle'] < latest['idle'] then
    latest = field
  end
  if field['pending'] == 0 and field['idle'] > tonumber(ARGV[2]) then
    gone[#gone + 1] = field
  end
end

for _, reader in ipairs(gone) do
  if reader ~= latest then
    redis.pcall('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], reader['name'])
  end
end

return 0
