-- forget: delete the scope of a key.
--
-- KEYS   see _chain.lua, with one scope
-- ARGV   1 generation, 2 and 3 the step's number, 4 the lowest number of a step still under way
-- Answer done, 1 if it was there, else 0
--        busy            something is in flight there, or somebody waits there; nothing was changed
--        cancelled, owner, stale
-- Atomic: all of it. Done once, however often it is sent.
-- include _chain _terms _once
local answer = before()
if answer then return answer end
local s = call('HMGET', KEYS[6], 'g', 'f', 'w')
if (s[2] or '0') ~= '0' or (s[3] or '0') ~= '0' then return {'busy'} end
local there = ours(s[1]) and 1 or 0
if there == 1 then call('DEL', KEYS[6], KEYS[7]) end
return done({'done', there})
