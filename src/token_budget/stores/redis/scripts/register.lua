-- register: let a process have a lease.
--
-- KEYS   see _chain.lua, without a scope
-- ARGV   1 the root's generation, '' where the process has not seen it yet, 2 who it is, 5 the seconds of the lease
-- Answer done, or lost: the root is not there, or of another generation, or the leases are gone;
--        or ended: this process had a lease that has ended
-- Atomic: all of it. A copy renews the lease.
-- include _chain
local root = call('HGET', KEYS[5], 'g')
if ARGV[1] ~= '' and match(root or '', '^%d*') ~= ARGV[1] then return {'lost'} end
if root and not call('ZSCORE', KEYS[3], '.') then return {'lost'} end
if call('HEXISTS', KEYS[2], 'e') == 1 then return {'ended'} end
call('HSETNX', KEYS[1], 'l', 0)
call('HSET', KEYS[1], 'o', ARGV[2])
call('ZADD', KEYS[3], format('%.17g', clock() + ARGV[5]), string.sub(KEYS[1], #KEYS[5] + 4))
return {'done'}
