-- What each process gave at opening or by set_caps: KEYS 9, a hash of "token cap|nanodollar cap|window|who" by process.
-- '' was not given; none is no cap or no window, which only set_caps gives.
local PLACE = {T = 1, N = 2, W = 3}

local function parts(text)
  return {match(text, '^(.-)|(.-)|(.-)|(.*)$')}
end

-- Return what another living process gave that is not this value, and who that is. Those that ended are forgotten.
local function objection(what, value)
  local all = call('HGETALL', KEYS[9])
  for i = 1, #all, 2 do
    local theirs = parts(all[i + 1])
    local lease = call('ZSCORE', KEYS[3], all[i])
    if not lease or tonumber(lease) <= clock() then
      call('HDEL', KEYS[9], all[i])
    elseif all[i] ~= ARGV[17] and theirs[PLACE[what]] ~= '' and theirs[PLACE[what]] ~= value then
      return theirs[PLACE[what]], theirs[4]
    end
  end
end

-- Note what a process gives; where it gives nothing, what it gave before stays.
local function give(process, who, tokens, nanos, window)
  local old = parts(call('HGET', KEYS[9], process) or '|||')
  for i, value in ipairs({tokens, nanos, window}) do
    if value ~= '' then old[i] = value end
  end
  if old[1] .. old[2] .. old[3] ~= '' then
    call('HSET', KEYS[9], process, old[1] .. '|' .. old[2] .. '|' .. old[3] .. '|' .. who)
  end
end
