-- revive: make a scope anew that was closed and is deleted since, as a closed one: something is counted in it late.
--
-- KEYS   see _chain.lua, with one scope; 9 the names of all scopes
-- ARGV   1 generation, 2 its path
-- Answer done: it is there, or is made now; or it has to be opened, or is lost
-- Atomic: all of it. A copy changes nothing. The name stays free: whoever opens it gets a new scope.
-- include _chain _terms
if ours(call('HGET', KEYS[5], 'g')) and call('HGET', KEYS[9], ARGV[2]) == 'c' and call('EXISTS', KEYS[6]) == 0 then
  local new = number()
  call(
    'HSET', KEYS[6], 'g', ARGV[1] .. '.' .. new, 'w', 0, 't', NONE, 'n', NONE, 'p', 0, 'm', 0, 'f', 0, 'a', new,
    'k', 'r', 'x', 'c', 'c', new)
  call('PEXPIRE', KEYS[6], 604800000)
end
return {'done'}
