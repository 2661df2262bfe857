-- numbers: in which order scopes were made.
--
-- KEYS   see _chain.lua, without a scope; then the hashes of any scopes
-- ARGV   1 generation
-- Answer for each scope its number, or '' where it is not there, or of another budget
-- Atomic: all of it. It changes nothing.
local found = {}
for i = 6, #KEYS do
  local s = redis.call('HMGET', KEYS[i], 'g', 'c')
  found[i - 5] = s[1] and string.match(s[1], '^%d+') == ARGV[1] and s[2] or ''
end
return found
