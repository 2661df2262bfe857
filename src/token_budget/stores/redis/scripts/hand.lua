-- hand: give an open claim an owner of its own, with a lease of its own.
--
-- KEYS   see _chain.lua, without a scope; then the hash of the new owner
-- ARGV   1 generation, 2 the claim's number, 3 the step's number, 4 the lowest number of a step still under way, 5 the
--        new owner, 6 the seconds of its lease
-- Answer moved, owner    it is number 1 of that owner, by this run or an earlier one, and has this lease
--        closed          it is not open: it was settled, or never granted
--        owner           the process is no longer known, and its claims are charged
--        stale
-- Atomic: all of it. A copy of an earlier run, with another lease, is stale once a later one was done.
-- include _chain
local own, n = KEYS[1], ARGV[2]
local known = call('HMGET', own, 'o', 'l', n)
if not known[1] then return {'owner'} end
if tonumber(ARGV[3]) < tonumber(known[2]) then return {'stale'} end
local entry = known[3] or '='
local moved = match(entry, '^=h (%S+)$')
if moved then
  call('ZADD', KEYS[3], 'XX', format('%.17g', clock() + ARGV[6]), moved)
  if tonumber(ARGV[4]) > tonumber(known[2]) then call('HSET', own, 'l', ARGV[4]) end
  return {'moved', moved}
end
if not match(entry, '^%d') then return {'closed'} end
call('HSET', KEYS[#KEYS], 'o', '+' .. known[1], 'l', 0, '1', entry)
call('ZADD', KEYS[3], format('%.17g', clock() + ARGV[6]), ARGV[5])
call('HSET', own, n, '=h ' .. ARGV[5])
return {'moved', ARGV[5]}
