-- Compare-and-append (B1): adds all entries if the stream's last position is the one expected, else none.
-- Answers with the last position after the call; with nothing to append, that is all it does.
--
-- KEYS[1]  the stream
-- ARGV[1]  the position expected
-- ARGV[2]  the position before the first entry, or nothing where that is the one expected
--          then, for each entry in order, its position and its envelope
--
-- `last-generated-id` and not the last entry: Redis keeps it when a stream is trimmed or deleted empty.
-- An error on the way (out of memory, say) ends the script and keeps what was added before it. That is still the log's
-- beginning in order, so whoever asks for the last position goes on from there.

local last = '0-0'

if redis.call('EXISTS', KEYS[1]) == 1 then
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      last = info[i + 1]
    end
  end
end

if last == ARGV[1] and #ARGV > 2 then
  local prev = last
  if #ARGV[2] > 0 then
    prev = ARGV[2]
  end
  for i = 3, #ARGV, 2 do
    last = redis.call('XADD', KEYS[1], ARGV[i], 'event', ARGV[i + 1], 'prev', prev)
    prev = last
  end
end

return last
