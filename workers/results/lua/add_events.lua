-- KEYS: events. ARGV: most events, then events. Without the stream that `job.started` has made there is no such job.
local events = unpack(KEYS, 1, 1)
local max_events = unpack(ARGV, 1, 1)
if redis.call('EXISTS', events) == 0 then return 0 end
for i = 2, #ARGV do redis.call('XADD', events, 'MAXLEN', '~', max_events, '*', 'e', ARGV[i]) end
return #ARGV - 1
