-- Removes the oldest entries of a stream at or below a position that every group has behind it, but never the last one (B4).
-- Answers with how many it removed, and whether it stopped early so as not to keep others waiting.
--
-- KEYS[1]  the stream
-- ARGV[1]  the position
-- ARGV[2]  how many entries to remove at most, about
--
-- The names of our groups, and of those that stand for what they have settled, are of no matter here: all hold.
-- Positions are compared as text: Lua's numbers keep 53 bits of them.

local function lower(one, other)
  local major, minor = string.match(one, '^(%d+)-(%d+)$')
  local other_major, other_minor = string.match(other, '^(%d+)-(%d+)$')
  if major == other_major then
    major, other_major = minor, other_minor
  end
  if #major ~= #other_major then
    return #major < #other_major
  end
  return major < other_major
end

if redis.call('EXISTS', KEYS[1]) == 0 then
  return {0, 0}
end

local upto = ARGV[1]
local keep = nil

for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local field = fields(group)
  if lower(field['last-delivered-id'], upto) then
    upto = field['last-delivered-id']
  end
  if field['pending'] > 0 then
    local oldest = redis.call('XPENDING', KEYS[1], field['name'])[2]
    if keep == nil or lower(oldest, keep) then
      keep = oldest
    end
  end
end

local stays = redis.call('XRANGE', KEYS[1], '(' .. upto, '+', 'COUNT', 1)
if #stays == 0 then
  stays = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
end
if #stays == 0 then
  return {0, 0}
end
if keep == nil or lower(stays[1][1], keep) then
  keep = stays[1][1]
end

-- Whole nodes first, which costs next to nothing and can be limited; of what is left, part of a node is left.
local limit = tonumber(ARGV[2])
local removed = redis.call('XTRIM', KEYS[1], 'MINID', '~', keep, 'LIMIT', limit)
if removed * 2 > limit then
  return {removed, 1}
end
return {removed + redis.call('XTRIM', KEYS[1], 'MINID', '=', keep), 0}
