-- Take an amount from the room of every scope of the chain, or of none. Return the first scope that has no room, or
-- where somebody waits who is older than the ticket; nil if it is taken. And the name of the cap that leaves no room.
-- Room is told by the sign of what HINCRBY answers, which a double keeps at any size. An axis of which nothing is asked
-- refuses nothing.
local function take(waits, tokens, nanos, id, ticket)
  local at, cap
  for i = 1, count do
    local key = KEYS[3 + 3 * i]
    if waits[i] then
      local first, older = lines().head(i)
      if first and first ~= id and not (ticket and ticket < older) then
        at = i
        break
      end
    end
    if tokens ~= '0' and call('HINCRBY', key, 't', '-' .. tokens) < 0 then
      call('HINCRBY', key, 't', tokens)
      at, cap = i, 'T'
      break
    end
    if nanos ~= '0' and call('HINCRBY', key, 'n', '-' .. nanos) < 0 then
      call('HINCRBY', key, 'n', nanos)
      if tokens ~= '0' then call('HINCRBY', key, 't', tokens) end
      at, cap = i, 'N'
      break
    end
  end
  if at then
    for i = 1, at - 1 do
      if tokens ~= '0' then call('HINCRBY', KEYS[3 + 3 * i], 't', tokens) end
      if nanos ~= '0' then call('HINCRBY', KEYS[3 + 3 * i], 'n', nanos) end
    end
  end
  return at, cap
end

-- Return what is answered before a refusal: a process whose lease is over is charged, since what it holds comes back to
-- nobody, unless the flags have l: it is left for later. Without the leases nobody knows who holds what.
local function dead(flags)
  if not call('ZSCORE', KEYS[3], '.') then return {'lost'} end
  if match(flags, 'l') then return nil end
  local owner = call('ZRANGEBYSCORE', KEYS[3], '-inf', format('%.17g', clock()), 'LIMIT', 0, 1)[1]
  return owner and {'expired', owner}
end
