"""The steps of a shared flight that must not be torn apart, as Lua.

Each flight brings four keys: cache (its answer), lease (the token of who asks), waiters (somebody waits for it),
outcome (what its owner told them: token, a blank, payload).
"""

from typing import Final

from tasks import keys

DEAD: Final = keys.dead("")

#: ARGV lease_ms, then for each flight: token, token of the owner seen before, 1 where the cache's answer is unwanted.
#: An owner that is known to be dead is none: its token begins with the name of its process.
#: Returns for each: {'value', bytes} | {'outcome', bytes} | {'own', ''} | {'held', owner's token, its lease's ms left}.
CLAIM: Final = f"""
local ends = {{}}
for i = 1, #KEYS / 4 do
  local cache, lease, waiters, outcome = KEYS[4*i-3], KEYS[4*i-2], KEYS[4*i-1], KEYS[4*i]
  local token, seen, fresh = ARGV[3*i-1], ARGV[3*i], ARGV[3*i+1]
  local told = seen ~= '' and redis.call('GET', outcome) or false
  local value = fresh == '0' and redis.call('GET', cache) or false
  if value then
    ends[i] = {{'value', value}}
  elseif told and string.sub(told, 1, #seen + 1) == seen .. ' ' then
    ends[i] = {{'outcome', string.sub(told, #seen + 2)}}
  else
    local owner = redis.call('GET', lease)
    if owner and owner ~= token and redis.call('EXISTS', '{DEAD}' .. string.match(owner, '^[^:]*')) == 0 then
      redis.call('SET', waiters, '1', 'PX', math.max(tonumber(ARGV[1]), 60000))
      ends[i] = {{'held', owner, math.max(0, redis.call('PTTL', lease))}}
    else
      redis.call('SET', lease, token, 'PX', ARGV[1])
      ends[i] = {{'own', ''}}
    end
  end
end
return ends
"""

#: ARGV lease_ms ttl_ms channel, then for each flight: token, value to store or '', outcome or '', flight.
#: The answer is stored also where the lease was lost: it is paid for.
END: Final = """
for i = 1, #KEYS / 4 do
  local cache, lease, waiters, outcome = KEYS[4*i-3], KEYS[4*i-2], KEYS[4*i-1], KEYS[4*i]
  local token, value, told, flight = ARGV[4*i], ARGV[4*i+1], ARGV[4*i+2], ARGV[4*i+3]
  if value ~= '' then redis.call('SET', cache, value, 'PX', ARGV[2]) end
  if redis.call('GET', lease) == token then redis.call('DEL', lease) end
  if redis.call('DEL', waiters) == 1 then
    if told ~= '' then redis.call('SET', outcome, token .. ' ' .. told, 'PX', math.max(tonumber(ARGV[1]), 10000)) end
    redis.call('PUBLISH', ARGV[3], flight)
  end
end
return 1
"""

#: KEYS leases; ARGV lease_ms token...
RENEW: Final = """
for i = 1, #KEYS do
  if redis.call('GET', KEYS[i]) == ARGV[i + 1] then redis.call('PEXPIRE', KEYS[i], ARGV[1]) end
end
return 1
"""
