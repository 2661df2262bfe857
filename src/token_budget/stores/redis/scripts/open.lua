-- open: make a scope or a group, or find it, and settle its caps and its window.
--
-- KEYS   see _chain.lua, with one scope, which may be the root or a group's hash; 9 what each process gave, 10 the
--        names of all scopes, 11 and on the hashes of the scopes above, its parent first
-- ARGV   1 the root's generation, '' where the process has not seen it yet, 2 and 3 the step's number, 4 the lowest
--        number of a step still under way, 5 token cap, 6 nanodollar cap, 7 window, each '' where none was given,
--        8 code, mine or stored, 9 the command that publishes, 10 not '' where the window has a clock of its own,
--        11 start and 12 end of its period, 13 not '' where it may be made, 14 its path, 15 not '' for a group,
--        16 the generation of a root that is made, 17 the process, and 18 who that is, 19 what the
--        clock of its old window says, '' for the server's
-- Answer opened, made, generation, begun, (what, stored, given) of each value that changed; made: 1 if it is new;
--                        begun: 1 where it got another window and its period was over, so that it began anew
--        mismatch, what, stored, given, theirs, who   a living process gave another value
--        now, time       it is not in that period by the server's clock
--        closed, i       a scope above is closed: 2 is the nearest
--        gone, i         a scope above is not there, or is of another budget
--        none            there is no such root, and it must not be made
--        lost            the root knows the scope, and it is not there; or the root is of another generation
--        foreign         there is something else under this key
--        newer, version  the root was made by a later version of this package
--        cancelled, owner, stale
-- Atomic: all of it. Done once, however often it is sent.
-- include _chain _line _terms _once _giving
local answer = before()
if answer then return answer end
local key, generation = KEYS[6], ARGV[1]
local root = call('HMGET', KEYS[5], 'g', 'V')
local present = root[1] and match(root[1], '^%d+')
if key == KEYS[5] and not present then
  if call('EXISTS', key) == 1 then return {'foreign'} end
  if generation ~= '' or call('EXISTS', KEYS[10]) == 1 then return {'lost'} end
  if ARGV[13] == '' then return {'none'} end
  generation = ARGV[16]
elseif not present or generation ~= '' and present ~= generation then
  return {'lost'}
else
  generation = present
  if tonumber(root[2]) > 1 then return {'newer', root[2]} end
end
for i = 11, #KEYS do
  local above = call('HMGET', KEYS[i], 'g', 'k')
  if not above[1] or match(above[1], '^%d+') ~= generation then return {'gone', i - 9} end
  if above[2] then return {'closed', i - 9} end
end

local given = {T = ARGV[5], N = ARGV[6], W = ARGV[7]}
local s = call('HMGET', key, 'g', 'T', 'N', 'W', 't', 'n', 'w', 'e', 'k')
local stored = {T = s[2] or '', N = s[3] or '', W = s[4] or ''}
local made = 0
if not s[1] or match(s[1], '^%d+') ~= generation or s[9] == 'r' then
  if not s[1] and call('EXISTS', key) == 1 then return {'foreign'} end
  local known = call('HGET', KEYS[10], ARGV[14])
  if known and known ~= 'c' then return {'lost'} end
  made, s, stored = 1, {}, {T = '', N = '', W = ''}
end
local changed = {}
for _, what in ipairs({'T', 'N', 'W'}) do
  local value = given[what]
  if value ~= '' and value ~= stored[what] and (made == 1 or ARGV[8] ~= 'stored') then
    if made == 0 and ARGV[8] == 'code' then
      local theirs, who = objection(what, value)
      if theirs then return {'mismatch', what, stored[what], value, theirs, who} end
    end
    changed[#changed + 1] = what
  end
end
for _, what in ipairs(changed) do
  if what == 'W' and misses(ARGV[10], ARGV[11], ARGV[12]) then
    return {'now', format('%.17g', clock())}
  end
end

ARGV[1] = generation
if made == 1 then
  call('DEL', key, KEYS[7], KEYS[9]) -- of a root that was deleted on purpose
  local new = number()
  if ARGV[15] ~= '' then
    call('HSET', key, 'g', generation, 'v', 1, 'c', new)
  else
    call(
      'HSET', key, 'g', generation .. '.' .. new, 'w', 0, 't', NONE, 'n', NONE, 'p', 0, 'm', 0, 'f', 0, 'a', new,
      'c', new)
  end
  if key == KEYS[5] then
    call('HSET', key, 'V', 1, 'u', new)
    call('ZADD', KEYS[3], 'inf', '.')
  end
  call('HSET', KEYS[10], ARGV[14], new)
end
answer = {'opened', made, generation, 0}
for _, what in ipairs(changed) do
  local value = given[what]
  if ARGV[15] ~= '' then
    call('HSET', key, what, value)
  elseif what == 'W' then
    if made == 0 and ended(s[8], ARGV[19]) then
      begin(key)
      answer[4] = 1
    end
    call('HSET', key, 'W', value)
    set_period(key, ARGV[11], ARGV[12])
  else
    shift(key, what, what == 'T' and 't' or 'n', stored[what] ~= '' and stored[what] or nil, value)
  end
  if made == 0 then
    answer[#answer + 1] = what
    answer[#answer + 1] = stored[what]
    answer[#answer + 1] = value
  end
end
if made == 0 and #changed > 0 then
  if ARGV[15] == '' then
    revise(key)
  else
    local version = call('HINCRBY', key, 'v', 1)
    if changed[#changed] == 'W' then set_group_window(key, version, ARGV[12], ARGV[19]) end
  end
end
if not s[9] and (ARGV[8] ~= 'stored' or made == 1) then give(ARGV[17], ARGV[18], given.T, given.N, given.W) end
if s[7] and s[7] ~= '0' and #changed > 0 then lines().tell(1) end
return done(answer)
