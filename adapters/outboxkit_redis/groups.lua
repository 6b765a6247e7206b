-- How far each group of a stream is: its name, its last delivered position, the oldest one pending ('' when there is none), and
-- the milliseconds since any of its consumers was last heard of (-1 when it never had one).
--
-- KEYS[1]  the stream

local found = {}

if redis.call('EXISTS', KEYS[1]) == 1 then
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local field = fields(group)
    local oldest = ''
    if field['pending'] > 0 then
      oldest = redis.call('XPENDING', KEYS[1], field['name'])[2]
    end
    local idle = -1
    for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], field['name'])) do
      for i = 1, #consumer, 2 do
        if consumer[i] == 'idle' and (idle < 0 or consumer[i + 1] < idle) then
          idle = consumer[i + 1]
        end
      end
    end
    found[#found + 1] = {field['name'], field['last-delivered-id'], oldest, idle}
  end
end

return found
