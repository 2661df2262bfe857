-- charged: what was charged of some processes.
--
-- KEYS   see _chain.lua, without a scope; then the hashes of what was charged or settled of any processes
-- ARGV   unused
-- Answer for each hash its fields and values
-- Atomic: all of it. It changes nothing.
local found = {}
for i = 6, #KEYS do found[i - 5] = redis.call('HGETALL', KEYS[i]) end
return found
