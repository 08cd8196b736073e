-- Shared by scripts that spend a job's budget, and with it its team's. Nano-dollars, milliseconds, UTC.
-- A team's hash has what it has spent on each of the last days (2026-11-29) and in each month (2026-11), what each
-- process has reserved for each of its jobs (JOB/PROCESS:reserved, :seen), and what was charged for one that was found
-- dead (:lost, :seen).

local DAY_MS = 86400000
-- For how long a team's days are kept, and what was charged for the dead.
local KEPT_MS = 62 * DAY_MS

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function digits(number) return string.format('%.0f', number) end

-- The names of a moment's day and month. Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms" (2013).
local function periods(now)
  local z = math.floor(now / DAY_MS) + 719468
  local era = math.floor(z / 146097)
  local of_era = z - era * 146097
  local year = math.floor(
    (of_era - math.floor(of_era / 1460) + math.floor(of_era / 36524) - math.floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  local march = math.floor((5 * of_year + 2) / 153)
  local day = of_year - math.floor((153 * march + 2) / 5) + 1
  local month = march < 10 and march + 3 or march - 9
  year = year + era * 400 + (month <= 2 and 1 or 0)
  local name = string.format('%04d-%02d', year, month)
  return name .. string.format('-%02d', day), name
end

local function values_of(hash)
  local values, fields = {}, redis.call('HGETALL', hash)
  for i = 1, #fields, 2 do values[fields[i]] = fields[i + 1] end
  return values
end

-- The key of a job's team; false without one. A script has one budget, whose team is asked for once.
local known_team
local function team_of(budget)
  if known_team == nil then
    local team = redis.call('HGET', budget, 'team')
    known_team = team and 'themes:team:' .. team
  end
  return known_team
end

local function fault_of(team)
  local kind = redis.call('TYPE', team).ok
  if kind == 'none' then return false end
  if kind ~= 'hash' then return team .. ' holds no hash' end
  for name, value in pairs(values_of(team)) do
    if not (string.match(value, '^%d+$') and tonumber(value) < 9007199254740992) then
      return name .. ' in ' .. team .. ' is no whole number from 0 on'
    end
  end
  return false
end

-- Why what is known of a job's team cannot be read; false where it can. To be asked before anything is written: a
-- script that fails halfway writes its first half again at each try. All values of a team's hash are whole numbers.
local known_fault
local function unreadable_team(budget)
  if known_fault == nil then known_fault = team_of(budget) and fault_of(team_of(budget)) end
  return known_fault
end

-- Adds to what a team has spent today and this month. The first amount of a day drops what no limit looks at any more.
local function charge(team, amount, now)
  local day, month = periods(now)
  redis.call('HINCRBY', team, month, digits(amount))
  if redis.call('HINCRBY', team, day, digits(amount)) > amount then return end
  local first, values = periods(now - KEPT_MS), values_of(team)
  for name in pairs(values) do
    local process = string.match(name, '^(.*):lost$')
    if process and tonumber(values[process .. ':seen'] or '0') < now - KEPT_MS then
      redis.call('HDEL', team, name, process .. ':seen')
    elseif string.match(name, '^%d%d%d%d%-%d%d%-%d%d$') and name < first then
      redis.call('HDEL', team, name)
    end
  end
end

-- Adds to what a job has spent, and its team today and this month.
local function spend(budget, amount, now)
  redis.call('HINCRBY', budget, 'spent', digits(amount))
  if amount > 0 and team_of(budget) then charge(team_of(budget), amount, now) end
end

-- Charges what a dead process has reserved: its calls may have been made.
local function lose(team, process, amount, now)
  charge(team, amount, now)
  redis.call('HDEL', team, process .. ':reserved')
  redis.call('HSET', team, process .. ':lost', digits(amount), process .. ':seen', digits(now))
end

-- Takes the charge back from a process that lives: it was cut off for a while, and reports its own costs.
local function found(team, process)
  local lost, at = unpack(redis.call('HMGET', team, process .. ':lost', process .. ':seen'))
  if not lost then return end
  for _, period in ipairs({periods(tonumber(at or '0'))}) do
    local spent = redis.call('HGET', team, period)
    if spent then redis.call('HSET', team, period, digits(math.max(0, tonumber(spent) - tonumber(lost)))) end
  end
  redis.call('HDEL', team, process .. ':lost', process .. ':seen')
end

-- Writes what a process has reserved for a job. `seen`: when it lived.
local function reserve(budget, job, me, amount, seen)
  local places = {{budget, me}}
  local team = team_of(budget)
  if team then places[2] = {team, job .. '/' .. me} end
  for _, place in ipairs(places) do
    local hash, name = unpack(place)
    if amount > 0 then redis.call('HSET', hash, name .. ':reserved', digits(amount), name .. ':seen', digits(seen))
    else redis.call('HDEL', hash, name .. ':reserved', hash ~= budget and name .. ':seen' or name .. ':reserved') end
  end
end

-- When a batch is seen: never too long ago, and unlike any process.
local NEVER_DIES = 9000000000000000

-- What others than `me` have reserved by the values of a hash: of processes that live and of batches, by the dead, and of
-- batches. Of a job whose budget has left Redis nothing would ever settle what its batches have reserved.
local function held(values, me, now, silent_ms)
  local living, dead, batches = 0, {}, 0
  for name, amount in pairs(values) do
    local process = string.match(name, '^(.*):reserved$')
    if process and process ~= me then
      local seen = tonumber(values[process .. ':seen'] or '0')
      local job = seen >= NEVER_DIES and string.match(process, '^(.*)/')
      local is_gone = job and redis.call('EXISTS', 'themes:job:' .. job .. ':budget') == 0
      if is_gone or now - seen > silent_ms then dead[process] = tonumber(amount)
      else
        living = living + tonumber(amount)
        if seen >= NEVER_DIES then batches = batches + tonumber(amount) end
      end
    end
  end
  return living, dead, batches
end

-- The limits on a job's next call: its own, its team's of the day, and of the month, each {limit, certain, others}.
-- What a dead process has reserved may have been charged: it counts as spent. A limit that is no amount is none that a
-- call fits into. `limits` is JSON of each team's {day, month}, as this process knows them.
local function funds_of(budget, job, me, now, silent_ms, limits)
  if unreadable_team(budget) then return {{}, {}, {}, is_unreadable = true} end
  local values = values_of(budget)
  local limit = values.limit
  local most = limit and tonumber(limit)
  if limit and not (most and most >= 0 and most < 9007199254740992) then most = 0 end
  local others, dead = held(values, me, now, silent_ms)
  local certain = tonumber(values.spent or '0')
  for _, amount in pairs(dead) do certain = certain + amount end
  local funds = {{limit = most, certain = certain, others = others}, {}, {}}
  local team = team_of(budget)
  if not team then return funds end
  local known = cjson.decode(limits)[string.sub(team, #'themes:team:' + 1)]
  if not known then funds.is_unknown = true return funds end
  found(team, job .. '/' .. me)
  local others_of_team, dead_of_team, batches_of_team = held(values_of(team), job .. '/' .. me, now, silent_ms)
  for process, amount in pairs(dead_of_team) do lose(team, process, amount, now) end
  for at, spent in ipairs(redis.call('HMGET', team, periods(now))) do
    if known[at] ~= cjson.null then
      funds[at + 1] = {
        limit = known[at], certain = tonumber(spent or '0'), others = others_of_team, batches = batches_of_team}
    end
  end
  return funds
end

-- 1: `amount` fits beside what is spent, and reserved by others and by us (`own`); 0: it would if reservations came
-- back; below 0: it does not, by the job's limit (-1), its team's of the day (-2) or of the month (-3), or because this
-- process knows no such team (-4), or what Redis holds of it cannot be read (-5). 10 less than -2 or -3: batches alone
-- hold too much of the team's, and they take hours: a call that waited so long would keep its lane from others.
local function decision(funds, own, amount)
  if funds.is_unreadable then return -5 end
  if funds.is_unknown then return -4 end
  local answer = 1
  for at, fund in ipairs(funds) do
    if fund.limit and fund.certain + amount > fund.limit then return -at end
    if fund.limit and fund.certain + fund.others + own + amount > fund.limit then
      local is_long = fund.batches and fund.batches > 0 and fund.certain + fund.batches + amount > fund.limit
      answer = is_long and -10 - at or math.min(answer, 0)
    end
  end
  return answer
end

-- {now, limit and certain of the job, of its team's day, of its month}; a limit of -1 is none.
local function standing(funds, now)
  local answer = {digits(now)}
  for _, fund in ipairs(funds) do
    answer[#answer + 1] = digits(fund.limit or -1)
    answer[#answer + 1] = digits(fund.certain or 0)
  end
  return answer
end
