-- KEYS totals since; ARGV since, then names and values. Another database's counters take the place of what is there;
-- of the same database's the higher value stays, because consumers may report out of order.
local totals, since = unpack(KEYS, 1, 2)
local began = unpack(ARGV, 1, 1)
if redis.call('GET', since) ~= began then
  redis.call('DEL', totals)
  redis.call('SET', since, began)
end
for i = 2, #ARGV, 2 do
  local known = redis.call('HGET', totals, ARGV[i])
  known = known and tonumber(known)
  if not known or not (known <= 9300000000000000000) or tonumber(ARGV[i + 1]) > known then
    redis.call('HSET', totals, ARGV[i], ARGV[i + 1])
  end
end
return 1
