-- ARGV lease_ms, then for each flight: token, token of the owner seen before, 1 where the cache's answer is unwanted.
-- An owner that is known to be dead is none: its token begins with the name of its process.
-- Returns for each: {'value', bytes} | {'outcome', bytes} | {'own', ''} | {'held', owner's token, its lease's ms left}.
local lease_ms = unpack(ARGV, 1, 1)
local ends = {}
for i = 1, #KEYS / 4 do
  local cache, lease, waiters, outcome = KEYS[4*i-3], KEYS[4*i-2], KEYS[4*i-1], KEYS[4*i]
  local token, seen, fresh = ARGV[3*i-1], ARGV[3*i], ARGV[3*i+1]
  local told = seen ~= '' and redis.call('GET', outcome) or false
  local value = fresh == '0' and redis.call('GET', cache) or false
  if value then
    ends[i] = {'value', value}
  elseif told and string.sub(told, 1, #seen + 1) == seen .. ' ' then
    ends[i] = {'outcome', string.sub(told, #seen + 2)}
  elseif redis.call('SET', lease, token, 'NX', 'PX', lease_ms) then
    ends[i] = {'own', ''}
  else
    local owner = redis.call('GET', lease)
    if owner and owner ~= token and redis.call('EXISTS', 'themes:dead:' .. string.match(owner, '^[^:]*')) == 0 then
      redis.call('SET', waiters, '1', 'PX', math.max(tonumber(lease_ms), 60000))
      ends[i] = {'held', owner, math.max(0, redis.call('PTTL', lease))}
    else
      redis.call('SET', lease, token, 'PX', lease_ms)
      ends[i] = {'own', ''}
    end
  end
end
return ends
