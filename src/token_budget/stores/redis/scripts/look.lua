-- look: show that a process waits, and what has changed in scopes where others wait with it.
--
-- KEYS   see _chain.lua
-- ARGV   1 generation, 10 and on: for each scope what the clock of its window says, '' for the server's
-- Answer done, a text for each scope that changes with its numbers, terms, its period's end, and who is first there
--        owner           the process is no longer known
-- Atomic: all of it. It changes nothing but the time of the beat.
-- include _chain
if call('HEXISTS', KEYS[1], 'o') == 0 then return {'owner'} end
call('ZADD', KEYS[4], format('%.17g', clock()), string.sub(KEYS[1], #KEYS[5] + 4))
local texts = {}
for i = 1, count do
  local s = call('HMGET', KEYS[3 + 3 * i], 'g', 't', 'n', 'p', 'm', 'e')
  local text = {s[1] or '', s[2] or '', s[3] or '', s[4] or '', s[5] or ''}
  text[6] = s[6] and (ARGV[9 + i] == '' and clock() or tonumber(ARGV[9 + i])) >= tonumber(s[6]) and 'ended' or ''
  text[7] = call('ZRANGE', KEYS[4 + 3 * i], 0, 0)[1] or ''
  text[8] = KEYS[5 + 3 * i] ~= KEYS[5] and call('HGET', KEYS[5 + 3 * i], 'v') or ''
  texts[i] = table.concat(text, ' ')
end
return {'done', texts}
