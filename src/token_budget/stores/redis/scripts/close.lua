-- close: end a scope for everybody.
--
-- KEYS   see _chain.lua, with one scope; 9 the names of all scopes, 10 what each process gave
-- ARGV   1 generation, 2 and 3 the step's number, 4 the lowest number of a step still under way, 5 its path, '' for a
--        key's, 6 v where keys that expire may be evicted before, 9 the command that publishes
-- Answer done; cancelled, owner, stale, gone
-- Atomic: all of it. Claims in flight still settle. Seven days after the last one the scope expires, and its name is
-- free. That of a key does not: the key would begin anew. Nor does any that may be evicted before.
-- include _chain _line _terms _once
local answer = before()
if answer then return answer end
local key = KEYS[6]
local s = call('HMGET', key, 'g', 'f', 'w', 'k')
if not ours(s[1]) then return {'gone', 1} end
if not s[4] then
  call('HSET', key, 'k', 'c')
  if ARGV[5] ~= '' then call('HSET', KEYS[9], ARGV[5], 'c') end
  call('DEL', KEYS[10])
  call('PERSIST', key)
  if ARGV[5] == '' or ARGV[6] ~= '' then
    call('HDEL', key, 'x')
  else
    call('HSET', key, 'x', 'c')
    if s[2] == '0' then call('PEXPIRE', key, 604800000) end
  end
  revise(key)
  if s[3] ~= '0' then lines().tell(1) end
end
return done({'done'})
