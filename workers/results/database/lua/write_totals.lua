-- KEYS totals since; ARGV since, then names and values. Another database's counters take the place of what is there;
-- of the same database's the higher value stays, because consumers may report out of order.
local totals, since = unpack(KEYS, 1, 2)
local began = unpack(ARGV, 1, 1)
if redis.call('GET', since) ~= began then
  redis.call('DEL', totals)
  redis.call('SET', since, began)
end
local names, higher = {}, {}
for i = 2, #ARGV, 2 do names[#names + 1] = ARGV[i] end
for number, found in ipairs(redis.call('HMGET', totals, unpack(names))) do
  local value, known = ARGV[2 * number + 1], found and tonumber(found)
  if not known or not (known <= 9300000000000000000) or tonumber(value) > known then
    higher[#higher + 1] = names[number]
    higher[#higher + 1] = value
  end
end
if #higher > 0 then redis.call('HSET', totals, unpack(higher)) end
return 1
