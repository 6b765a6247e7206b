-- Notes up to where a group has settled a stream: as the position of a group of its own, which nobody reads with. There it goes
-- when the stream goes, and trimming sees it.
--
-- KEYS[1]  the stream
-- ARGV[1]  the name of that group
-- ARGV[2]  the position

if redis.call('EXISTS', KEYS[1]) == 1 then
  local answer = redis.pcall('XGROUP', 'SETID', KEYS[1], ARGV[1], ARGV[2])
  if type(answer) == 'table' and answer.err then
    redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], ARGV[2])
  end
end

return 0
