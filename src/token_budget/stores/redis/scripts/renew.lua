-- renew: renew the lease of a process.
--
-- KEYS   see _chain.lua, without a scope
-- ARGV   2 the seconds of the lease, 4 the lowest number of a step still under way, 10 and on the numbers of answers
--        that their callers have heard; the others are unused
-- Answer done, how many entries its hash has, up to ten processes whose leases are over
--        owner           the process is no longer known
--        lost            the leases are gone
-- Atomic: all of it. A copy renews it again.
-- include _chain _scopes
if call('HEXISTS', KEYS[1], 'o') == 0 then return {'owner'} end
if call('HEXISTS', KEYS[5], 'g') == 1 and not call('ZSCORE', KEYS[3], '.') then return {'lost'} end
call('ZADD', KEYS[3], format('%.17g', clock() + ARGV[2]), string.sub(KEYS[1], #KEYS[5] + 4))
local dead = call('ZRANGEBYSCORE', KEYS[3], '-inf', format('%.17g', clock()), 'LIMIT', 0, 10)
return {'done', call('HLEN', KEYS[1]) - 2, dead}
