-- Caps, windows and periods of one scope: KEYS 6 its hash, 7 its line, 8 its group's hash or the root's.

-- Return whether a revision is of the caller's generation.
local function ours(revision)
  return revision and match(revision, '^%d+') == ARGV[1]
end

-- Return a new number: of revisions, eras, and the order in which scopes are made. Each is given once, so that a key's
-- scope that was made anew is in no era that it was in before.
local function number()
  return format('%.0f', call('HINCRBY', KEYS[5], 'u', 1))
end

-- Give a scope another revision: whoever has read it reads it again.
local function revise(key)
  call('HSET', key, 'g', ARGV[1] .. '.' .. number())
end

-- Change a cap; '' is none. The room changes with it, first by what keeps it within 64 bits.
local function shift(key, cap, room, old, new)
  local before, after = old or NONE, new == '' and NONE or new
  if before == after then return end
  if tonumber(call('HGET', key, room)) < 0 then
    if after ~= '0' then call('HINCRBY', key, room, after) end
    if before ~= '0' then call('HINCRBY', key, room, '-' .. before) end
  else
    if before ~= '0' then call('HINCRBY', key, room, '-' .. before) end
    if after ~= '0' then call('HINCRBY', key, room, after) end
  end
  if new == '' then call('HDEL', key, cap) else call('HSET', key, cap, new) end
end

-- Return whether a period is not the server's: then the caller computes it anew for the time that is answered. A window
-- with a clock of its own has `own` ~= '': its caller knows.
local function misses(own, starts, ends)
  return own == '' and ends ~= '' and not (tonumber(starts) <= clock() and clock() < tonumber(ends))
end

-- Return the moment, if it is one at which a period is over. `reading` is what its clock says, '' for the server's.
local function ended(ends, reading)
  if not ends then return nil end
  local at = reading == '' and clock() or tonumber(reading)
  return at >= tonumber(ends) and at or nil
end

local function set_period(key, starts, ends)
  if ends == '' then
    call('HDEL', key, 's', 'e')
  else
    call('HSET', key, 's', starts, 'e', ends)
  end
end

-- Return when a key's scope expires, in milliseconds: a day after its period.
local function expiry(ends)
  return format('%.0f', (ends + 86400) * 1000)
end

-- Let a key's scope expire, if it does (x is k), and nothing is in flight in it.
local function expire(key, x, flying, ends)
  if x == 'k' and (flying or '0') == '0' then call('PEXPIREAT', key, expiry(ends)) end
end

-- Give a group another window (already set), as of a version. Its keys follow with their next steps, and may be late: E
-- is the end of the period in which the window was set, and a key that first meets the window after that has begun anew
-- meanwhile. So has one that has never met the window before, if that had such an end: b is the version of the last
-- such. Of the others those begin anew whose period was over when their window ended: r is what its clock said then,
-- and only keys of versions below q had it. The period of a key that has met a later window was not over yet when that
-- ended.
local function set_group_window(key, version, ends, reading)
  local last = call('HMGET', key, 'E', 'y', 'q')
  local over = last[1] and last[1] ~= '' and ended(last[1], reading)
  if over then call('HSET', key, 'b', last[2]) end
  if over or not last[3] then
    call('HSET', key, 'q', version, 'r', reading == '' and format('%.17g', clock()) or reading)
  end
  call('HSET', key, 'y', version, 'E', ends)
end

-- Set what is used to 0; what is held stays. All thresholds are armed.
local function begin(key)
  local s = call('HMGET', key, 'p', 'm')
  if s[1] ~= '0' then call('HINCRBY', key, 't', s[1]) end
  if s[2] ~= '0' then call('HINCRBY', key, 'n', s[2]) end
  call('HSET', key, 'p', 0, 'm', 0, 'a', number())
  call('HDEL', key, 'd')
end
