-- KEYS bills results; ARGV payer entry of each. Puts what batches have cost on the stream, once each.
local bills, results = unpack(KEYS, 1, 2)
for i = 1, #ARGV, 2 do
  if redis.call('HDEL', bills, ARGV[i]) == 1 then redis.call('XADD', results, '*', 'b', ARGV[i + 1]) end
end
return 1
