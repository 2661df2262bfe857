-- caps: set caps or the window of a scope, or of a group.
--
-- KEYS   see _chain.lua, with one scope, which may be a group's hash; 9 what each process gave
-- ARGV   1 generation, 2 and 3 the step's number, 4 the lowest number of a step still under way, 5 token cap,
--        6 nanodollar cap, 7 window, each '' where it stays, none for none, 8 g for a group, k for a key's scope, else
--        '', 9 the command that publishes, 10 not '' where the window has a clock of its own, 11 start and 12 end of
--        its period, '' for none, 13 what the clock of its old window says, '' for the server's, 17 the process, and 18
--        who that is
-- Answer done, begun     1 where it got another window and its period was over, so that it began anew, else 0
--        closed          the scope is closed
--        now, time       it is not in that period by the server's clock
--        cancelled, owner, stale, gone
-- Atomic: all of it. Done once, however often it is sent.
-- include _chain _line _terms _once _giving
local answer = before()
if answer then return answer end
local key, kind = KEYS[6], ARGV[8]
local s = call('HMGET', key, 'g', 'T', 'N', 't', 'n', 'w', 'k', 'o', 'e')
if kind == 'g' and s[1] ~= ARGV[1] or kind ~= 'g' and not ours(s[1]) then return {'gone', 1} end
if s[7] then return {'closed'} end
local tokens, nanos, window = ARGV[5], ARGV[6], ARGV[7]
if window ~= '' and misses(ARGV[10], ARGV[11], ARGV[12]) then
  return {'now', format('%.17g', clock())}
end

local function text(value) return value == 'none' and '' or value end

local over
if kind == 'g' then
  local version = call('HINCRBY', key, 'v', 1)
  for what, value in pairs({T = tokens, N = nanos, W = window}) do
    if value == 'none' then call('HDEL', key, what) elseif value ~= '' then call('HSET', key, what, value) end
  end
  if window ~= '' then set_group_window(key, version, ARGV[12], ARGV[13]) end
else
  over = window ~= '' and ended(s[9], ARGV[13])
  if over then begin(key) end
  if tokens ~= '' then shift(key, 'T', 't', s[2], text(tokens)) end
  if nanos ~= '' then shift(key, 'N', 'n', s[3], text(nanos)) end
  if window ~= '' then
    if window == 'none' then call('HDEL', key, 'W') else call('HSET', key, 'W', window) end
    set_period(key, ARGV[11], ARGV[12])
  end
  revise(key)
end
if kind == 'k' then
  local own = s[8] or ''
  if tokens ~= '' and not match(own, 'T') then own = own .. 'T' end
  if nanos ~= '' and not match(own, 'N') then own = own .. 'N' end
  if window ~= '' and not match(own, 'W') then own = own .. 'W' end
  call('HSET', key, 'o', own)
  call('HDEL', key, 'x') -- what was given to it alone must not expire
  call('PERSIST', key)
else
  give(ARGV[17], ARGV[18], tokens, nanos, window)
end
if s[6] and s[6] ~= '0' then lines().tell(1) end
return done({'done', over and 1 or 0})
