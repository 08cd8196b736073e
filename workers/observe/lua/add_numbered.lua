-- KEYS: the hash, the mark of the process, and a point of a series where there is one. ARGV: report number, seconds to
-- remember it, now, seconds to keep the point, how many numbers follow for the hash, those as name and amount, then
-- those of the point.
local total, mark, point = unpack(KEYS, 1, 3)
local number, remembered_seconds, now, point_seconds, count = unpack(ARGV, 1, 5)
if redis.call('GET', mark) == number then return 0 end
redis.call('SET', mark, number, 'EX', remembered_seconds)
redis.call('HSETNX', total, 'since', now)
local last = 5 + 2 * count
for i = 6, last, 2 do redis.call('HINCRBYFLOAT', total, ARGV[i], ARGV[i + 1]) end
if #ARGV > last then
  for i = last + 1, #ARGV, 2 do redis.call('HINCRBYFLOAT', point, ARGV[i], ARGV[i + 1]) end
  redis.call('EXPIRE', point, point_seconds)
end
return 1
