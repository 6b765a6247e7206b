-- Destroys groups of a stream; those that are not there are passed over.
--
-- KEYS[1]    the stream
-- ARGV[...]  their names

if redis.call('EXISTS', KEYS[1]) == 1 then
  for i = 1, #ARGV do
    redis.call('XGROUP', 'DESTROY', KEYS[1], ARGV[i])
  end
end

return 0
