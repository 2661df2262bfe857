-- leave: give up a claim's ticket.
--
-- KEYS   see _chain.lua
-- ARGV   1 generation, 2 the claim's number, 3 the step's number, 4 the lowest number of a step still under way,
--        7 t where the clocks tell the time, 9 and on: see _chain.lua
-- Answer left, i, rows   it waits no more; i the scope at which it waited, 0 if it did not wait
--        granted, rows   it was granted meanwhile; nothing was changed
--        owner, what     the process is no longer known, and with it its tickets; what became of the claim, or nil
--        stale, changed  as reserve's
-- Atomic: all of it. A copy of a reserve that arrives later takes nothing.
-- include _chain _scopes _rows _line
local own, n = KEYS[1], ARGV[2]
local known = call('HMGET', own, 'o', 'l', n)
if not known[1] then return {'owner', call('HGET', KEYS[2], n)} end
if tonumber(ARGV[3]) < tonumber(known[2]) then return {'stale'} end
local waits, problem = scopes(ARGV[7] == 't')
if not waits then return problem end
local entry = known[3] or '='
local place = tonumber(match(entry, '^%?%d+ (%d+)') or 0)
if place > 0 then
  lines().leave(place, string.sub(own, #KEYS[5] + 4) .. '-' .. n)
  lines().tell(place)
elseif not match(entry, '^=') then
  return {'granted', rows()}
end
call('HSET', own, n, '=x')
return {'left', place, rows()}
