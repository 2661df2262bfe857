-- What each process gave at opening or by set_caps: KEYS 9, a hash of "token cap|nanodollar cap|window|who" by process.
-- '' was not given; none is no cap or no window, which only set_caps gives.
local PLACE = {T = 1, N = 2, W = 3}

local function parts(text)
  return {match(text, '^(.-)|(.-)|(.-)|(.*)$')}
end

-- Forget what a process gave whose lease is over. Return whether it is.
local function over(process)
  local lease = call('ZSCORE', KEYS[3], process)
  if lease and tonumber(lease) > clock() then return false end
  call('HDEL', KEYS[9], process)
  return true
end

-- Return what another living process gave that is not this value, and who that is. Those that ended are forgotten.
local function objection(what, value)
  local all = call('HGETALL', KEYS[9])
  for i = 1, #all, 2 do
    local theirs = parts(all[i + 1])
    if not over(all[i]) and all[i] ~= ARGV[17] and theirs[PLACE[what]] ~= '' and theirs[PLACE[what]] ~= value then
      return theirs[PLACE[what]], theirs[4]
    end
  end
end

-- Note what a process gives; where it gives nothing, what it gave before stays. With every 32nd process those that
-- ended are forgotten, so that no more than that are kept beside the living.
local function give(process, who, tokens, nanos, window)
  local old = parts(call('HGET', KEYS[9], process) or '|||')
  for i, value in ipairs({tokens, nanos, window}) do
    if value ~= '' then old[i] = value end
  end
  if old[1] .. old[2] .. old[3] ~= '' then
    local text = old[1] .. '|' .. old[2] .. '|' .. old[3] .. '|' .. who
    if call('HSET', KEYS[9], process, text) == 1 and call('HLEN', KEYS[9]) % 32 == 0 then
      for _, one in ipairs(call('HKEYS', KEYS[9])) do over(one) end
    end
  end
end
