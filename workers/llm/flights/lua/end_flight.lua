-- ARGV lease_ms ttl_ms channel, then for each flight: token, value to store or '', outcome or '', flight.
-- The answer is stored also where the lease was lost: it is paid for.
local lease_ms, ttl_ms, channel = unpack(ARGV, 1, 3)
for i = 1, #KEYS / 4 do
  local cache, lease, waiters, outcome = KEYS[4*i-3], KEYS[4*i-2], KEYS[4*i-1], KEYS[4*i]
  local token, value, told, flight = ARGV[4*i], ARGV[4*i+1], ARGV[4*i+2], ARGV[4*i+3]
  if value ~= '' then redis.call('SET', cache, value, 'PX', ttl_ms) end
  if redis.call('GET', lease) == token then redis.call('DEL', lease) end
  if redis.call('DEL', waiters) == 1 then
    if told ~= '' then redis.call('SET', outcome, token .. ' ' .. told, 'PX', math.max(tonumber(lease_ms), 10000)) end
    redis.call('PUBLISH', channel, flight)
  end
end
return 1
