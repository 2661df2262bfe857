-- forget: delete the scope of a key, and all below it.
--
-- KEYS   see _chain.lua, with one scope; 9 the names of all scopes, then whatever else is deleted with it
-- ARGV   1 generation, 2 and 3 the step's number, 4 the lowest number of a step still under way, 10 and on: the
--        paths of scopes and groups below that have a name
-- Answer done, 1 if it was there, else 0
--        busy, flying, waiting   claims are in flight there, or wait there; nothing was changed
--        cancelled, owner, stale
-- Atomic: all of it. Done once, however often it is sent. A name below counts as closed until it is made anew.
-- include _chain _terms _once
local answer = before()
if answer then return answer end
local s = call('HMGET', KEYS[6], 'g', 'f', 'w')
if not ours(s[1]) then return done({'done', 0}) end
if s[2] ~= '0' or s[3] ~= '0' then return {'busy', s[2], s[3]} end
call('DEL', KEYS[6], KEYS[7])
for i = 10, #KEYS do call('DEL', KEYS[i]) end
for i = 10, #ARGV do
  if string.sub(ARGV[i], -1) == ':' then call('HDEL', KEYS[9], ARGV[i]) else call('HSET', KEYS[9], ARGV[i], 'c') end
end
return done({'done', 1})
