-- KEYS chunks leases owners deliveries labels finished results; ARGV chunk size, then destination and entry of each.
-- Returns 1 for each that was published. A reply that was lost may be asked for again: that call changes nothing.
local chunks, leases, owners, deliveries, labels, finished, results = unpack(KEYS, 1, 7)
local chunk, size = unpack(ARGV, 1, 2)
local is_open = redis.call('HEXISTS', chunks, chunk) == 1
local published = {}
for i = 3, #ARGV, 2 do
  local is_new = is_open and redis.call('SADD', finished, ARGV[i]) == 1
  if is_new then redis.call('XADD', results, '*', 'b', ARGV[i + 1]) end
  published[#published + 1] = is_new and 1 or 0
end
if is_open and redis.call('SCARD', finished) >= tonumber(size) then
  redis.call('HDEL', chunks, chunk)
  redis.call('ZREM', leases, chunk)
  for i = 3, 5 do redis.call('HDEL', KEYS[i], chunk) end
  redis.call('DEL', finished)
end
return published
