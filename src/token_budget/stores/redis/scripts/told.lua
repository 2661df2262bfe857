-- told: note that a threshold was told in an era, or that some are armed again.
--
-- KEYS   see _chain.lua, with one scope
-- ARGV   1 generation, 2 and 3 the step's number, 4 the lowest number of a step still under way, 5 the era, 6 the
--        threshold that is told, or '', 10 and on those that are armed again
-- Answer done, 1 if it was not told before in this era, else 0
--        cancelled, owner, stale, gone
-- Atomic: all of it. Done once, however often it is sent.
-- include _chain _terms _once
local answer = before()
if answer then return answer end
local s = call('HMGET', KEYS[6], 'g', 'a', 'd')
if not ours(s[1]) then return {'gone', 1} end
if s[2] ~= ARGV[5] then return done({'done', 0}) end
local known, list = {}, {}
for parts in string.gmatch(s[3] or '', '%d+') do known[parts] = true end
local new = ARGV[6] ~= '' and not known[ARGV[6]]
if new then known[ARGV[6]] = true end
for i = 10, #ARGV do known[ARGV[i]] = nil end
for parts in pairs(known) do list[#list + 1] = parts end
table.sort(list)
if #list > 0 then
  call('HSET', KEYS[6], 'd', table.concat(list, ','))
else
  call('HDEL', KEYS[6], 'd')
end
return done({'done', new and 1 or 0})
