-- roll: begin the next period of a scope whose period is over.
--
-- KEYS   see _chain.lua, with one scope
-- ARGV   1 generation, 2 the end of the period that is over, 5 start and 6 end of the new one, 7 not '' where its
--        window has a clock of its own, 9 the command that publishes
-- Answer rolled       by this run
--        same         somebody else has rolled it, or it has another window since, or is not there
--        now, time    it is not in that period by the server's clock
-- Atomic: all of it. The old end is compared, so that a copy changes nothing.
-- include _chain _line _terms
local key = KEYS[6]
local s = call('HMGET', key, 'g', 'e', 'w', 'x', 'f')
if not ours(s[1]) or s[2] ~= ARGV[2] then return {'same'} end
if misses(ARGV[7], ARGV[5], ARGV[6]) then return {'now', format('%.17g', clock())} end
begin(key)
set_period(key, ARGV[5], ARGV[6])
revise(key)
expire(key, s[4], s[5], ARGV[6])
if s[3] ~= '0' then lines().tell(1) end
return {'rolled'}
