-- reset: set what is used to 0, and the period to the one that the clock is in.
--
-- KEYS   see _chain.lua, with one scope
-- ARGV   1 generation, 2 and 3 the step's number, 4 the lowest number of a step still under way, 5 not '' where its
--        window has a clock of its own, 6 start and 7 end of the period, '' without a window, 8 the scope's revision,
--        9 the command that publishes
-- Answer done
--        now, time    it is not in that period by the server's clock
--        changed, 1   it has another revision, or is not there: read it again
--        cancelled, owner, stale
-- Atomic: all of it. Done once, however often it is sent.
-- include _chain _line _terms _once
local answer = before()
if answer then return answer end
local key = KEYS[6]
local s = call('HMGET', key, 'g', 'w', 'x', 'f')
if s[1] ~= ARGV[8] then return {'changed', 1} end
if misses(ARGV[5], ARGV[6], ARGV[7]) then return {'now', format('%.17g', clock())} end
begin(key)
set_period(key, ARGV[6], ARGV[7])
revise(key)
expire(key, s[3], s[4], ARGV[7])
if s[2] ~= '0' then lines().tell(1) end
return done({'done'})
