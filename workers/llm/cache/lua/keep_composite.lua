-- KEYS composite part...; ARGV value. Stores an entry that is made of others for as long as the first of them lives.
-- Returns 0, and stores nothing, where one of them is not there.
local composite, value = KEYS[1], unpack(ARGV, 1, 1)
local left
for i = 2, #KEYS do
  local part = redis.call('PTTL', KEYS[i])
  if part <= 1 then return 0 end
  if not left or part < left then left = part end
end
if not left then return 0 end
-- Some servers' clocks go on within a script: one millisecond less, so that it is not one more.
redis.call('SET', composite, value, 'PX', left - 1)
return 1
