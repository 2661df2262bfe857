-- read: the numbers of any number of scopes as of one moment.
--
-- KEYS   see _chain.lua
-- ARGV   1 generation, 2 not '' where ended leases may be left for later
-- Answer read, time, a row for each scope, what the group of each has (empty where it is no key)
--        expired, owner  that process's lease is over: charge it, and ask again
--        lost            the leases are gone
-- Atomic: all of it. It changes nothing.
-- include _chain _rows
if ARGV[2] == '' then
  if not call('ZSCORE', KEYS[3], '.') then return {'lost'} end
  local dead = call('ZRANGEBYSCORE', KEYS[3], '-inf', format('%.17g', clock()), 'LIMIT', 0, 1)
  if dead[1] then return {'expired', dead[1]} end
end
local groups = {}
for i = 1, count do
  local group = KEYS[5 + 3 * i]
  groups[i] = group ~= KEYS[5] and call('HMGET', group, 'g', 'v', 'T', 'N', 'W', 'y', 'E', 'b', 'q', 'r') or {}
end
return {'read', format('%.17g', clock()), rows(), groups}
