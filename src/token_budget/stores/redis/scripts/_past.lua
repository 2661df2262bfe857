-- Keep for 7 days what was charged or settled of a process. Where keys that expire may be evicted before, it does not
-- expire: a later step like this one deletes it. Whose it is that is old is found here, so that these keys are not among
-- KEYS; they have the budget's hash tag, and so are where those are.
local function keep(past, volatile)
  local old = format('%.0f', clock() - 604800)
  local charges = KEYS[5] .. ':x'
  if volatile then
    call('PERSIST', past)
    for _, owner in ipairs(call('ZRANGEBYSCORE', charges, '-inf', old, 'LIMIT', 0, 100)) do
      local key = KEYS[5] .. ':o:' .. owner .. ':x'
      if key ~= past then call('DEL', key) end
      call('ZREM', charges, owner)
    end
  else
    call('PEXPIRE', past, 604800000)
    call('ZREMRANGEBYSCORE', charges, '-inf', old)
  end
end
