#!lua flags=allow-oom
-- One account's ledger in Redis: the translation of AccountLedger::sync (policy/src/ledger.rs), function by function and
-- by the same names, replayed against it by quota-service/tests/ledger_conformance.rs. One key, all or nothing: what may
-- fail is read first, then everything is written. docs/LEDGER.md explains every field of the key.
--
-- KEYS[1]  the account, a hash
-- ARGV     1 holder   2 incarnation   3 seq   4 keep   5 want   6 lease   7 longest request   8 guarded   9 ahead
--          10 the time that the holder expects, or nothing
--          11 version   12 capacity   13 policy   14 levels   15 groups     as the hash keeps them
--          16 limits    [[METER, AMOUNT, WINDOW, BURST, PERIOD], ...]; a budget has the window 0
--          17 reports   [[METER, DRAWN, COUNTED, KEEP, PERIOD], ...]
--          18 spent     [[SEQ, FLOW, WEIGHT, CHARGE], ...]; a FLOW is group/level/tenant
--          19 rows      FLOW WEIGHT HEAD WAITING WAITED MONEY, a line each, in the holder's own order
--          20 servers   RUN AGO LOST, a line each: how long each has been in charge, and what it lost (LOST below)
--          21 how long ago the holder was answered, or nothing   22 how long it waits for this answer, or nothing
--          23 how far the clock has run ahead since, as a late answer showed, or nothing
--          24 the number of the last call that was answered, or nothing   25 the time by the holder's own clock, or nothing
-- returns  what the ledger knows of the holder, its picks, and its parts of the meters: a line of `name=value ...` each
--
-- All numbers are integers below 2^53, which Lua's doubles hold exactly; names have no spaces, quotes or slashes.
local key, me = KEYS[1], ARGV[1]
local incarnation, seq, keep, want = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local lease, longest, expected = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[10])
local patience, jump, wall = tonumber(ARGV[22]), tonumber(ARGV[23]) or 0, tonumber(ARGV[25])
local is_guarded, is_ahead = ARGV[8] == '1', ARGV[9] == '1'

local FORMAT = '3'
local TERMS = {'version', 'capacity', 'policy', 'levels', 'groups'}
local LOST = {none = 0, latest = 1, all = 2}
-- The capacity of an account whose slots nobody counts.
local UNCOUNTED = 4294967295
-- No holder is of this incarnation: it is awaited in vain.
local UNKNOWN = 9007199254740991
local STATE = {'spent', 'clock_offset', 'frozen_until', 'movable', 'swept_at', 'virtual_time'}
local METERS = {'requests_per_second', 'requests_per_minute', 'tokens_per_second', 'tokens_per_minute', 'tokens_per_day',
  'tokens_per_month', 'money_per_day', 'money_per_month'}
local OF_HOLDER = {'holder:', 'lent:', 'drawn:', 'picks:', 'rows:'}
local MOST_SKEW_MS, SWEEP_EVERY_MS, FRESH_MS = 2000, 60000, 250
local MOST_AHEAD_MS, EASTERNMOST_MS, DAY_MS = 60000, 14 * 3600000, 86400000
local FORGOTTEN_AFTER_S = 62 * 86400
local MOST_REFILL, MOST_CHARGE, REBASE_AT, MOST_COUNTER = 2 ^ 36, 2 ^ 30, 2 ^ 50, 2 ^ 52
-- Calls like the one that starts: what a tenant has had at lower levels puts it no further behind at a better one.
local MOST_BEHIND = 16

-- What several functions share: the account, and the call's own view of it.
local had = {}                          -- fields as they were read, '' for one that is not there
local watch, awaited                    -- the server that answers, and whom it waits for since it may have lost something
local terms, state, meters, zombies = {}, {}, {}, {}
local shares, lent, picks, rows = {}, {}, {}, {} -- by holder
local share, drawn                      -- the caller's
local now, is_frozen
local granted, zombie_sum, capacity = 0, 0, 0    -- sums over all holders, kept up to date
local open_rows = {}                    -- by holder: how many of its rows have more calls than slots

---------------------------------------------------------------------------------------------------- reading and writing

-- Lua itself prints numbers of 1e14 and above in exponents.
local function int(number) return string.format('%d', number) end

-- Lua's own < goes by the server's locale.
local function is_before(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = a:byte(i), b:byte(i)
    if x ~= y then return x < y end
  end
  return #a < #b
end

-- Runs a command on many words. None has more arguments than Lua's stack has room for.
local function in_parts(command, words, take)
  for from = 1, #words, 1000 do
    local answer = redis.call(command, key, unpack(words, from, math.min(from + 999, #words)))
    for i, value in ipairs(take and answer or {}) do take(from + i - 1, value or '') end
  end
end

-- A JSON object of numbers as a table, and back. (JSON is what Lua reads fastest; its own writer has 14 digits only, and
-- writes {} as it pleases.)
local function table_of(text) return text ~= '' and cjson.decode(text) or {} end
local function text_of(values)
  local words = {}
  for name, value in pairs(values) do words[#words + 1] = string.format('"%s":%d', name, value) end
  if #words == 0 then return '' end
  table.sort(words)
  return '{' .. table.concat(words, ',') .. '}'
end

-- Reads the account, unless another release has written it.
local function read()
  local fields = {'v', 'run', 'zombies', 'holders', 'watch', 'awaited', unpack(TERMS)}
  local function remember(i, value) had[fields[i]] = value end
  for _, name in ipairs(STATE) do fields[#fields + 1] = name end
  for _, name in ipairs(METERS) do fields[#fields + 1] = 'meter:' .. name end
  for _, kind in ipairs(OF_HOLDER) do fields[#fields + 1] = kind .. me end
  in_parts('HMGET', fields, remember)
  if had.v ~= '' and had.v ~= FORMAT then return false end
  fields = {}
  for name in string.gmatch(had.holders, '%S+') do
    for _, kind in ipairs(name ~= me and OF_HOLDER or {}) do fields[#fields + 1] = kind .. name end
  end
  in_parts('HMGET', fields, remember)
  for name in string.gmatch(had.holders, '%S+') do
    shares[name], lent[name] = cjson.decode(had['holder:' .. name]), table_of(had['lent:' .. name])
    picks[name], rows[name] = table_of(had['picks:' .. name]), had['rows:' .. name]
  end
  share, zombies, awaited = shares[me], table_of(had.zombies), table_of(had.awaited)
  watch = had.watch ~= '' and cjson.decode(had.watch) or {run = '', since = 0, lost = LOST.none}
  for _, name in ipairs(TERMS) do terms[name] = had[name] end
  for _, name in ipairs(STATE) do state[name] = tonumber(had[name]) or 0 end
  for _, name in ipairs(METERS) do
    local meter = had['meter:' .. name]
    if meter ~= '' then meters[name] = cjson.decode(meter) end
  end
  return true
end

-- Only what differs is written: a replica is sent that much less.
local changed, emptied = {}, {}
local function put(field, value, was)
  if value == (was or had[field]) then return end
  if value == '' then emptied[#emptied + 1] = field
  else changed[#changed + 1], changed[#changed + 2] = field, value end
end

local function put_share(name)
  local s, given = shares[name], {}
  for flow, pick in pairs(picks[name]) do
    given[#given + 1] = string.format('"%s":{"slots":%d,"weight":%d,"head":%d,"money":%d,"at":%d}', flow, pick.slots,
      pick.weight, pick.head, pick.money, pick.at)
  end
  put('holder:' .. name, string.format('{"incarnation":%d,"seq":%d,"granted":%d,"zombies":%d,"zombies_until":%d,' ..
    '"renewed_at":%d,"lease":%d,"longest":%d,"asserted":%d,"left":%d,"contended":%d,"agreed":%d,"version":"%s"}',
    s.incarnation, s.seq, s.granted, s.zombies, s.zombies_until, s.renewed_at, s.lease, s.longest, s.asserted,
    s.left or 0, s.contended, s.agreed or 0, s.version or ''))
  put('picks:' .. name, #given > 0 and '{' .. table.concat(given, ',') .. '}' or '')
  put('lent:' .. name, text_of(lent[name]))
end

local function put_meters()
  for _, name in ipairs(METERS) do
    local m = meters[name]
    put('meter:' .. name, m and string.format('{"amount":%d,"window":%d,"burst":%d,"period":%d,"level":%d,' ..
      '"fraction":%d,"refilled_at":%d}', m.amount, m.window, m.burst, m.period, m.level, m.fraction, m.refilled_at) or '')
  end
end

-- Writes what every call may have changed, and what was put before.
local function write()
  local names = {}
  for name, other in pairs(shares) do
    names[#names + 1] = name
    if other.is_changed then put_share(name) end
  end
  table.sort(names)
  put('v', FORMAT)
  put('holders', table.concat(names, ' '))
  put('zombies', text_of(zombies))
  put('watch', string.format('{"run":"%s","since":%d,"lost":%d}', watch.run, watch.since, watch.lost))
  put('awaited', text_of(awaited))
  for _, name in ipairs(STATE) do put(name, int(state[name])) end
  put_meters()
  in_parts('HSET', changed)
  in_parts('HDEL', emptied)
  -- Two months later no budget, debt or call of before counts any more.
  if int(state.swept_at) ~= had.swept_at then redis.call('EXPIRE', key, FORGOTTEN_AFTER_S) end
end

-- What a holder is told.
local function reply(name, wait)
  local other, alone, given, parts = shares[name], 1, {}, {}
  for others, share in pairs(shares) do
    if others ~= name then
      if share.granted > 0 then alone = 0 end
      for _, amount in pairs(lent[others]) do
        if amount > 0 then alone = 0 end
      end
    end
  end
  for flow, pick in pairs(picks[name]) do given[#given + 1] = flow .. '=' .. int(pick.slots) end
  for meter, known in pairs(meters) do
    local part = lent[name][meter] or 0
    parts[#parts + 1] = string.format('%s=%d/%d/%d/%d', meter, part, known.level, known.fraction, known.period)
  end
  local text = string.format('incarnation=%d seq=%d granted=%d contended=%d now=%d alone=%d zombies=%d',
    other.incarnation, other.seq, other.granted, other.contended, now, alone, zombie_sum)
  if wait then text = text .. ' wait=' .. int(wait) end
  if is_frozen then text = text .. ' frozen_until=' .. int(state.frozen_until) end
  text = text .. string.format(' server=%s/%d/%d', had.run, math.max(0, now - watch.since), watch.lost)
  return text .. '\n' .. table.concat(given, ' ') .. '\n' .. table.concat(parts, ' ')
end

------------------------------------------------------------------------------------------------------- time and leases

local function latest_call_at()
  local last = 0
  for _, other in pairs(shares) do last = math.max(last, other.renewed_at) end
  return last
end

-- By the ledger's time, of a call whose holder knows that. What it has seen pass is less than what has, by the time that the
-- last answer took, which is no longer than it waits.
local deadline = expected and patience and expected + 2 * patience

local function server_time()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- The answer to a call that came too late: its caller has given it up, and makes another one. It changes nothing and
-- renews no lease. Where the clock has jumped it looks the same; then the caller has its answer in time, and its next
-- call says by how much.
local function late_reply()
  local told = deadline and had.version ~= '' and math.max(0, server_time() + state.clock_offset)
  if not told or math.max(0, told - jump) <= deadline then return nil end
  return string.format('incarnation=%d seq=%d granted=0 contended=0 now=%d alone=0 zombies=0 late=1\n\n', incarnation,
    seq, told)
end

-- Whether the ledger's time is that of the holder's own clock.
local function agrees() return wall and math.abs(wall - now) <= MOST_SKEW_MS end

-- Whether the time since the latest call has passed, though nobody has seen it pass: a whole fleet was down. The ledger's
-- time was that of the latest caller's own clock then, and is that of this one's now.
local function has_passed(last)
  for _, other in pairs(shares) do
    if other.renewed_at == last and other.agreed ~= 1 then return false end
  end
  return agrees()
end

-- The ledger's time, which never runs back. What a holder saw pass since its last reply tells a clock that was set from
-- one that runs; who has heard nothing cannot tell, and then no more than a moment may have passed since the last call, if
-- anybody's slots depend on it, unless two replicas' own clocks tell what has passed. When the clock was set, time stands
-- still for this call: what is late is safe.
local function tell_time()
  local server = server_time()
  now = server + state.clock_offset
  if had.version ~= '' and deadline then
    now = math.max(now > deadline and now - jump or now, latest_call_at())
    state.clock_offset = now - server
  elseif had.version ~= '' then
    local last, depends = latest_call_at(), next(zombies) ~= nil
    for _, other in pairs(shares) do depends = depends or other.granted + other.zombies > 0 end
    local awaited = expected or (depends or last < state.frozen_until) and not has_passed(last) and last
    if awaited and now > awaited + MOST_SKEW_MS or now < last then
      now, state.clock_offset = last, last - server
    end
  end
  now = math.max(0, now)
end

-- What was lost of an account that is not there, and since when at the latest. What replicas know of the server: how long
-- it has been in charge, and what it lost.
local function lost_before(ago, lost)
  local heard_ago = tonumber(ARGV[21])
  if lost == LOST.all and (not heard_ago or ago <= heard_ago) then return lost, math.max(0, now - ago) end
  if heard_ago or keep > 0 then return LOST.all, now end
  if lost == LOST.latest then return lost, math.max(0, now - ago) end
  -- It knows other servers, and this one has taken the place of one of them, or is a further one.
  if not lost and ARGV[20] ~= '' then return LOST.latest, now end
  return LOST.none, now
end

-- Nobody has called before.
local function begin(run, ago, lost)
  local what, since = lost_before(ago, lost)
  watch = {run = run, since = since, lost = what}
  state.frozen_until = math.max(is_guarded and now + lease or 0, what ~= LOST.none and since + lease + longest or 0)
end

-- Another server answers, which may not know of the latest calls: a replica that took over, or one that was started again
-- from what it had saved.
local function lose_latest(run, ago)
  local since = ago and math.max(0, now - ago, latest_call_at()) or now
  if now < state.frozen_until then
    watch = {run = run, since = math.max(since, watch.since), lost = math.max(watch.lost, LOST.latest)}
  else
    watch, awaited = {run = run, since = since, lost = LOST.latest}, {}
  end
  state.movable = 0
  state.frozen_until = math.max(state.frozen_until, since + lease + longest)
  for name, other in pairs(shares) do
    other.asserted, other.is_changed = 0, true
    state.frozen_until = math.max(state.frozen_until, since + other.lease + other.longest)
    if other.left ~= 1 and not awaited[name] then awaited[name] = other.incarnation end
  end
end

-- Whether a ledger that answered so long ago, by the holder's clock, still knows the holder.
local function is_recent(ago) return ago + math.floor(ago / 32) + MOST_SKEW_MS < lease + longest end

-- Whether the same server answers again after another one, whose calls it does not know: a failover was taken back. It
-- shows by a call that was answered, and that it does not know of.
local function has_come_back(is_known)
  local answered, ago = tonumber(ARGV[24]), tonumber(ARGV[21])
  if not answered or not ago then return false end
  -- What was lost before is known where the holder has not said since what it holds.
  if is_known then return share.asserted == 1 and share.seq < answered end
  -- A holder that was heard lately is not forgotten in order.
  return now >= state.frozen_until and is_recent(ago)
end

-- The release before keeps no watch. What it has frozen stays so by its reckoning, neither shorter nor longer.
local function adopt(run)
  if watch.run == run then return end
  local was_frozen = now < state.frozen_until
  watch, awaited = {run = run, since = now, lost = LOST.none}, {}
  for name in pairs(was_frozen and shares or {}) do awaited[name] = UNKNOWN end
end

-- Freezes after a failover, a restart, or the loss of this account.
local function watch_for_loss()
  local info = redis.call('INFO', 'server')
  local run = string.match(info, '^%w+', select(2, string.find(info, 'run_id:', 1, true)) + 1)
  local ago, lost = string.match('\n' .. ARGV[20], '\n' .. run .. ' (%d+) (%d)')
  ago, lost = tonumber(ago), tonumber(lost)
  local is_known = share and share.incarnation == incarnation
  if had.version == '' then begin(run, ago, lost)
  elseif run ~= had.run then lose_latest(run, ago)
  elseif has_come_back(is_known) then lose_latest(run)
  else
    adopt(run)
    -- Begun empty, and now somebody turns up who holds something of what was there before.
    if watch.lost == LOST.none and keep > 0 and not is_known and now < state.frozen_until then
      watch.lost, watch.since = LOST.all, now
    end
  end
  -- The calls of this holder, too, may run as long as it says.
  local counts = watch.lost == LOST.latest or watch.lost == LOST.all and not is_known
  if counts and now < state.frozen_until then
    state.frozen_until = math.max(state.frozen_until, watch.since + lease + longest)
  end
  put('run', run)
  had.run = run
end

-- Thaws where every holder that is known has said what it holds, and every other one has had the time to.
local function thaw()
  if watch.lost == LOST.latest and now < state.frozen_until then
    local most, is_heard = 0, true
    for _, other in pairs(shares) do most = math.max(most, other.lease) end
    for name, of_incarnation in pairs(awaited) do
      local other = shares[name]
      is_heard = is_heard and other and other.incarnation == of_incarnation and other.asserted == 1
    end
    if is_heard and now >= watch.since + most then state.frozen_until = now end
  end
  is_frozen = now < state.frozen_until and capacity < UNCOUNTED
end

-- What exceeds a full bucket is lost.
local function cap(meter)
  if meter.level >= meter.burst then meter.level, meter.fraction = meter.burst, 0 end
end

-- What a holder that is gone was lent of budgets comes back. Of a rate it does not: the requests that were drawn of that
-- in the last moments nobody charges later, and time brings it back anyway.
local function inherit(holder)
  for name, amount in pairs(lent[holder]) do
    local meter = meters[name]
    if meter and meter.window == 0 then
      meter.level = meter.level + amount
      cap(meter)
    end
  end
end

-- When the calls of a holder have ended that starts none after now, and none after its lease.
local function calls_end_by_now(other) return math.min(other.renewed_at + other.lease, now) + other.longest end

-- Leases that have ended become zombies, zombies come free, and who was silent for longer than a call runs is forgotten,
-- unless the ledger is frozen: then it may not know when it heard him last.
local function expire()
  local kept = {}
  for free_at, slots in pairs(zombies) do
    if tonumber(free_at) > now then
      kept[free_at], zombie_sum = slots, zombie_sum + slots
    end
  end
  zombies = kept
  local is_still = now < state.frozen_until
  for name, other in pairs(shares) do
    if other.granted > 0 and other.renewed_at + other.lease <= now then
      other.zombies, other.granted, other.zombies_until = other.granted, 0, calls_end_by_now(other)
      picks[name], other.is_changed = {}, true
    end
    if other.zombies > 0 and other.zombies_until <= now then other.zombies, other.is_changed = 0, true end
    if name ~= me and not is_still and other.granted == 0 and calls_end_by_now(other) <= now then
      inherit(name)
      shares[name] = nil
      for _, kind in ipairs(OF_HOLDER) do put(kind .. name, '') end
    else
      granted, zombie_sum = granted + other.granted, zombie_sum + other.zombies
    end
  end
end

------------------------------------------------------------------------------------------------------ terms and meters

local function refill(meter)
  if meter.window == 0 then return end
  local elapsed = math.max(0, now - meter.refilled_at)
  meter.refilled_at = math.max(meter.refilled_at, now)
  if elapsed > math.floor(MOST_REFILL * meter.window / meter.amount) then
    meter.level, meter.fraction = meter.burst, 0
    return
  end
  local gained = meter.fraction + elapsed * meter.amount
  meter.level, meter.fraction = meter.level + math.floor(gained / meter.window), gained % meter.window
  cap(meter)
end

-- What was lent of a limit that is no more, or of the last period, is worth nothing.
local function void(name)
  for holder, other in pairs(shares) do
    if lent[holder][name] then lent[holder][name], other.is_changed = 0, true end
  end
end

-- The latest day or month that has begun anywhere, as periods are called. (By Howard Hinnant's `civil_from_days`: years
-- begin in March.)
local function latest_period(name)
  local days = math.floor((server_time() + EASTERNMOST_MS) / DAY_MS) + 719468
  local era, day = math.floor(days / 146097), days % 146097
  local year = math.floor((day - math.floor(day / 1460) + math.floor(day / 36524) - math.floor(day / 146096)) / 365)
  day = day - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  local month = math.floor((5 * day + 2) / 153)
  day = day - math.floor((153 * month + 2) / 5) + 1
  if month < 10 then month = month + 3 else month, year = month - 9, year + 1 end
  local in_months = (year + era * 400) * 100 + month
  return string.find(name, '_per_day$') and in_months * 100 + day or in_months
end

-- Takes over a limit: what has been drawn stays drawn. A later period begins with a full budget. One that cannot have begun
-- yet counts less than any other, and what was drawn of it has been drawn of that.
local function set_limit(name, amount, window, burst, period)
  local meter, latest = meters[name], latest_period(name)
  local is_later = meter.period < period
  local turns = is_later
  if meter.period > latest ~= (period > latest) then turns = meter.period > latest end
  meter.level = turns and is_later and burst or meter.level + burst - meter.burst
  meter.period = window > 0 and 0 or turns and period or meter.period
  meter.amount, meter.window, meter.burst, meter.fraction = amount, window, burst, 0
  if turns then void(name) end
end

-- Whether one version is earlier than another; the first number of three counts most. By the server's clock nobody knows
-- what will be in force in the future.
local function is_earlier(version, other)
  local function rank(text)
    local file, overlay, since = string.match(text, '(%d+) (%d+) (%d+)')
    since = tonumber(since)
    return {tonumber(file), tonumber(overlay), since <= server_time() + MOST_AHEAD_MS and 1 or 0, since}
  end
  local a, b = rank(version), rank(other)
  for i = 1, 4 do
    if a[i] ~= b[i] then return a[i] < b[i] end
  end
  return false
end

-- Whether another holder that lives goes by later terms. The release before does not tell by which it goes.
local function is_outdated()
  if had.version == '' or not is_earlier(ARGV[11], had.version) then return false end
  for name, other in pairs(shares) do
    if name ~= me and other.renewed_at + other.lease > now then
      if (other.version or '') == '' or not is_earlier(other.version, had.version) then return true end
    end
  end
  return false
end

-- Takes over the holder's terms, unless they are outdated; of two equal versions the one that was told last counts.
local function take_terms()
  if not is_outdated() then
    for i, name in ipairs(TERMS) do
      terms[name] = ARGV[10 + i]
      put(name, terms[name])
    end
    local limited = {}
    for _, limit in ipairs(cjson.decode(ARGV[16])) do
      local name, amount, window, burst, period = unpack(limit)
      limited[name] = true
      meters[name] = meters[name] or {amount = amount, window = window, burst = burst, period = period, level = burst,
        fraction = 0, refilled_at = now}
      local meter = meters[name]
      refill(meter)
      if meter.amount ~= amount or meter.window ~= window or meter.burst ~= burst or meter.period ~= period then
        set_limit(name, amount, window, burst, period)
      end
    end
    for name in pairs(meters) do
      if not limited[name] then
        void(name)
        meters[name] = nil
      end
    end
  end
  capacity = tonumber(terms.capacity)
end

-- What the holder keeps. It cannot keep more than it was granted, or, after its lease ended, than what became a zombie:
-- a `keep` that was sent before must not create slots. Only while the ledger is frozen a holder's first word counts more
-- than the ledger's, and where there are no slots to count.
local function take_share()
  is_frozen = now < state.frozen_until and capacity < UNCOUNTED
  if share and share.incarnation ~= incarnation then
    local slots, free_at = math.max(share.granted, share.zombies), int(calls_end_by_now(share))
    if slots > 0 then zombies[free_at] = (zombies[free_at] or 0) + slots end
    -- What the old incarnation has said it held is known.
    if share.asserted == 1 and awaited[me] == share.incarnation then awaited[me] = nil end
    granted, zombie_sum, share = granted - share.granted, zombie_sum - share.zombies + slots, nil
    inherit(me)
  end
  drawn = share and table_of(had['drawn:' .. me]) or {}
  if not share then
    share = {incarnation = incarnation, seq = 0, granted = 0, zombies = 0, asserted = 0, contended = 0}
    shares[me], lent[me], picks[me], rows[me] = share, {}, {}, ''
  end
  local held = math.max(share.granted, share.zombies)
  local asserts = is_frozen and share.asserted == 0 or capacity >= UNCOUNTED
  local kept = asserts and keep or math.min(keep, held)
  if is_frozen and not asserts then state.movable = state.movable + held - kept end
  granted, zombie_sum = granted - share.granted + kept, zombie_sum - share.zombies
  share.granted, share.zombies, share.zombies_until = kept, 0, 0
  share.left = keep == 0 and want == 0 and ARGV[19] == '' and 1 or 0
  share.renewed_at, share.lease, share.longest, share.asserted, share.is_changed = now, lease, longest, 1, true
  share.version, share.agreed = ARGV[11], agrees() and 1 or 0
end

-- What it has drawn, and keeps of what it was lent. What it gives back is free again, what it drew beyond its part is
-- owed. Of a budget's earlier period nothing comes back. What it has drawn in all is told against what it told before. That
-- may not be known here: the account was lost, or a holder forgotten that was silent for long. The holder knows: what was
-- answered was counted once.
local function take_draws()
  for _, meter in pairs(meters) do refill(meter) end
  for _, report in ipairs(cjson.decode(ARGV[17])) do
    local name, total, counted, keeps, period = unpack(report)
    local meter = meters[name]
    if meter then
      local left, kept = (lent[me][name] or 0) - (total - (drawn[name] or counted)), 0
      if period == meter.period then
        kept = math.max(0, math.min(left, keeps))
        meter.level = meter.level + left - kept
        cap(meter)
      end
      lent[me][name], drawn[name] = kept, total
    end
  end
  put('drawn:' .. me, text_of(drawn))
end

------------------------------------------------------------------------------------------------------------- the order

-- The branches that this call touches: flows of levels of groups. Of a branch `waiting` counts the flows below it that
-- compete, and `open` those that do of the flows with more calls than slots; of a flow each is 1 or 0.
local groups, levels, flows, owners = {}, {}, {}, {}
-- Whether the counters of all groups and levels have been read.
local is_read = false
local function level_of(name)
  local level = levels[name]
  if not level then
    local group_name = name:sub(1, -3)
    local group = groups[group_name] or {name = group_name, levels = {}, waiting = 0, open = 0}
    level = {name = name, number = name:byte(-1) - 48, group = group, flows = {}, waiters = {}, waiting = 0, open = 0}
    level.is_p0 = level.number == 0
    groups[group_name], levels[name], group.levels[#group.levels + 1] = group, level, level
    is_read = false
  end
  return level
end
-- Where levels share by weight, the flows of a tenant in a group have one owner, and only the one of the best level
-- competes, on whatever holder it waits.
local function flow_of(name)
  local flow = flows[name]
  if not flow then
    local group, number, tenant = string.match(name, '^([^/]*)/(%d)/(.*)')
    local level = level_of(group .. '/' .. number)
    local shares_level = terms.policy == 'wfq' or terms.policy == 'hybrid' and not level.is_p0
    local owner_name = shares_level and group .. '/' .. tenant or name
    local owner = owners[owner_name] or {is_shared = shares_level, group = group, tenant = tenant, flows = {}}
    flow = {name = name, level = level, owner = owner, rows = {waiting = 0, open = 0}, waiting = 0, open = 0, holders = {}}
    owners[owner_name], owner.flows[#owner.flows + 1] = owner, flow
    flows[name], level.flows[#level.flows + 1], level.is_read = flow, flow, false
  end
  return flow
end
local function flows_of(rows)
  local list = {}
  for flow in string.gmatch(rows, '\n(%S+)') do list[#list + 1] = flow_of(flow) end
  return list
end

-- By group, level and tenant.
local function is_flow_before(a, b)
  local group, other = a.level.group.name, b.level.group.name
  if group ~= other then return is_before(group, other) end
  if a.level.number ~= b.level.number then return a.level.number < b.level.number end
  return is_before(a.name, b.name)
end

-- The flow of an owner that competes, by its rows as they are counted now.
local function best_of(owner, kind)
  local best
  for _, flow in ipairs(owner.flows) do
    if flow.rows[kind] > 0 and not (best and best.level.number < flow.level.number) then best = flow end
  end
  return best
end
local function mark(flow, kind, more)
  if not flow then return end
  local level = flow.level
  flow[kind], level[kind], level.group[kind] = flow[kind] + more, level[kind] + more, level.group[kind] + more
  -- A call tells of more flows than wait.
  if kind == 'waiting' and more > 0 then level.waiters[#level.waiters + 1] = flow end
end
local function settle(owner, kind)
  local best = best_of(owner, kind)
  if best == owner[kind] then return end
  mark(best, kind, 1)
  mark(owner[kind], kind, -1)
  owner[kind] = best
end
-- Counts a row at its flow, and who competes by it.
local function count(flow, kind, more)
  flow.rows[kind] = flow.rows[kind] + more
  settle(flow.owner, kind)
end
local function open_row(holder, flow)
  count(flow, 'open', 1)
  flow.holders[#flow.holders + 1], open_rows[holder] = holder, (open_rows[holder] or 0) + 1
end

-- A row in full. Few are looked at closely, so rows are kept as text.
local function row_of(holder, flow)
  local text, pick = rows[holder], picks[holder][flow.name]
  local _, last = string.find(text, '\n' .. flow.name .. ' ', 1, true)
  local weight, head, waiting, waited, money = string.match(text, '^(%d+) (%d+) (%d+) (%d+) (%d+)', last + 1)
  -- Of two holders with calls of one flow, the next turn after a pick is the other's.
  local since = pick and pick.at or math.max(0, string.match(text, '^%d+') - waited)
  return {holder = holder, flow = flow, weight = weight + 0, head = head + 0, money = money + 0, since = since,
    pick = pick, open = waiting - (pick and pick.slots or 0)}
end

-- Counters are read where they are needed: those of groups and levels, then those of one level's flows.
local function read_counters(level)
  if not is_read then
    is_read = true
    local fields, branches = {}, {}
    local function want(field, branch)
      if not branch.counter then fields[#fields + 1], branches[#branches + 1] = field, branch end
    end
    for name, group in pairs(groups) do want('group:' .. name, group) end
    for name, other in pairs(levels) do want('level:' .. name, other) end
    in_parts('HMGET', fields, function(i, value)
      local branch, known = branches[i], table_of(value)
      branch.field, branch.was, branch.counter, branch.time = fields[i], value, known.counter or 0, known.time or 0
    end)
  end
  if level and not level.is_read then
    level.is_read = true
    local fields, unread = {}, {}
    for _, flow in ipairs(level.flows) do
      if not flow.counter then fields[#fields + 1], unread[#unread + 1] = 'counter:' .. flow.name, flow end
    end
    in_parts('HMGET', fields, function(i, value) unread[i].was, unread[i].counter = value, tonumber(value) or 0 end)
  end
end

-- Makes the flows of an owner that have a counter: the levels that a tenant uses.
local function find_used(owner)
  if owner.is_found then return end
  owner.is_found = true
  local names, fields = {}, {}
  for number = terms.policy == 'wfq' and 0 or 1, 9 do
    local name = owner.group .. '/' .. number .. '/' .. owner.tenant
    if not flows[name] then names[#names + 1], fields[#fields + 1] = name, 'counter:' .. name end
  end
  in_parts('HMGET', fields, function(i, value) return value ~= '' and flow_of(names[i]) end)
end

-- Lifts what is idle of a flow's branches to the virtual time, so that nobody claims the past.
local function wake(flow)
  if not flow or flow.waiting > 0 then return end
  local level, group = flow.level, flow.level.group
  read_counters(level)
  if group.waiting == 0 then group.counter = math.max(group.counter, state.virtual_time) end
  if level.waiting == 0 then level.counter = math.max(level.counter, group.time) end
  flow.counter = math.max(flow.counter, level.time)
end

-- Charges every branch above a flow so many times.
local weights
local function add(branch, weight, charge, times)
  local scaled = math.ceil(math.min(charge, MOST_CHARGE) * 1024 / math.max(1, weight))
  branch.counter = math.max(0, math.min(MOST_COUNTER, branch.counter + times * scaled))
end
-- The same beside a storey's virtual time: no further ahead of it, and not back behind it.
local function add_beside(branch, time, weight, charge, times)
  local scaled = math.ceil(math.min(charge, MOST_CHARGE) * 1024 / math.max(1, weight))
  if times > 0 then
    local counter = math.max(branch.counter, time)
    branch.counter = math.min(MOST_COUNTER, math.max(counter, math.min(counter + scaled, time + MOST_BEHIND * scaled)))
  else
    branch.counter = math.max(0, branch.counter + times * scaled, math.min(branch.counter, time))
  end
end
-- What a tenant has at a level counts at the better ones that it uses, too, as if it had been there: at its own counter
-- where others compete, at the level's where none does.
local function adjust_better(flow, weight, charge, times)
  if not flow.owner.is_shared then return end
  find_used(flow.owner)
  for _, better in ipairs(flow.owner.flows) do
    local level = better.level
    read_counters(level)
    if level.number < flow.level.number and better.counter > 0 then
      if level.waiting > better.waiting then add_beside(better, level.time, weight, charge, times)
      else add_beside(level, level.group.time, weights.levels[level.number + 1], charge, times) end
    end
  end
end
local function adjust(flow, weight, charge, times)
  local level = flow.level
  read_counters(level)
  weights = weights or {groups = table_of(terms.groups), levels = cjson.decode(terms.levels)}
  add(level.group, weights.groups[level.group.name] or 1, charge, times)
  add(level, weights.levels[level.number + 1], charge, times)
  add(flow, weight, charge, times)
  adjust_better(flow, weight, charge, times)
end

-- The smallest counter of those that compete, and of the one that starts.
local function lowest(branches, own, without_p0)
  local counter = own.counter
  for _, branch in pairs(branches) do
    if branch.waiting > 0 and branch.counter < counter and not (without_p0 and branch.is_p0) then counter = branch.counter end
  end
  return counter
end

-- Charges a start, and lets virtual time run: to the counter of what starts, but not past anyone who waits.
local function charge(flow, weight, amount)
  local level, group, is_hybrid = flow.level, flow.level.group, terms.policy == 'hybrid'
  read_counters(level)
  state.virtual_time = math.max(state.virtual_time, lowest(groups, group))
  -- P0's turn is no matter of counters, so its own says nothing about the others.
  if not (is_hybrid and level.is_p0) then group.time = math.max(group.time, lowest(group.levels, level, is_hybrid)) end
  level.time = math.max(level.time, lowest(level.waiters, flow))
  adjust(flow, weight, amount, 1)
end

-- Forgets flows that are not ahead of their level's virtual time and do not wait, and keeps counters small. Only this
-- looks at all there are.
local function sweep()
  if now - state.swept_at < SWEEP_EVERY_MS then return end
  state.swept_at = now
  local flat, level_at = redis.call('HGETALL', key), {}
  for i = 1, #flat, 2 do
    local level = string.match(flat[i], '^counter:([^/]*/%d)') or string.match(flat[i], '^level:(.*)')
    level_at[i] = level and level_of(level)
  end
  read_counters()
  local function rebased(counter, time) return time >= REBASE_AT and math.max(0, counter - REBASE_AT / 2) or counter end
  local function swept(counter, level) return counter <= level.time and 0 or rebased(counter, level.time) end
  for _, flow in pairs(flows) do
    read_counters(flow.level)
    flow.counter = flow.rows.waiting > 0 and rebased(flow.counter, flow.level.time) or swept(flow.counter, flow.level)
  end
  for i, level in pairs(level_at) do
    local flow = string.match(flat[i], '^counter:(.*)')
    local counter = flow and not flows[flow] and swept(tonumber(flat[i + 1]), level)
    if counter then put(flat[i], counter > 0 and int(counter) or '', flat[i + 1]) end
  end
  for _, level in pairs(levels) do
    level.counter, level.time = rebased(level.counter, level.group.time), rebased(level.time, level.time)
  end
  for _, group in pairs(groups) do
    group.counter, group.time = rebased(group.counter, state.virtual_time), rebased(group.time, group.time)
  end
  state.virtual_time = rebased(state.virtual_time, state.virtual_time)
end

local function put_counters()
  for _, branches in ipairs({groups, levels}) do
    for _, branch in pairs(branches) do
      local text = branch.counter and string.format('{"counter":%d,"time":%d}', branch.counter, branch.time)
      if text then put(branch.field, text, branch.was) end
    end
  end
  for name, flow in pairs(flows) do
    if flow.counter then put('counter:' .. name, flow.counter > 0 and int(flow.counter) or '', flow.was) end
  end
end

------------------------------------------------------------------------------------------------------- charges and rows

-- Who waits elsewhere. Rows are fresh for a quarter of a second, and while their holder's lease lasts.
local function find_rows_of_others()
  for name, other in pairs(shares) do
    if name ~= me and other.renewed_at + other.lease > now and now - other.renewed_at <= FRESH_MS then
      for _, flow in ipairs(flows_of(rows[name])) do
        count(flow, 'waiting', 1)
        if not picks[name][flow.name] or row_of(name, flow).open > 0 then open_row(name, flow) end
      end
    end
  end
end

-- What the caller's rows tell takes the place of what they told before. What has its turn from now on, here or at another
-- holder, claims nothing of the past; what only stands behind others of its tenant is kept from it too.
local function take_turns(told_flows, last_flows)
  local touched = {}
  for _, flow in ipairs(told_flows) do
    wake(flow)
    flow.rows.waiting, touched[flow.owner] = flow.rows.waiting + 1, true
  end
  for _, flow in ipairs(last_flows) do flow.rows.waiting, touched[flow.owner] = flow.rows.waiting - 1, true end
  for owner in pairs(touched) do wake(best_of(owner, 'waiting')) end
  for owner in pairs(touched) do settle(owner, 'waiting') end
end

-- Counts what was charged under numbers that this ledger has not seen yet, then lets the new rows take the place of the
-- last ones. All branches are made before the first counter is read.
local function take_charges_and_rows()
  local last_flows, spent = flows_of(rows[me]), {}
  for _, flow in ipairs(last_flows) do count(flow, 'waiting', 1) end
  rows[me] = ARGV[19] ~= '' and int(now) .. '\n' .. ARGV[19] or ''
  local told_flows = flows_of(rows[me])
  for _, told in ipairs(cjson.decode(ARGV[18])) do
    local first_told, flow, weight, amount = unpack(told)
    if first_told > share.seq then spent[#spent + 1] = {flow = flow_of(flow), weight = weight, amount = amount} end
  end
  local picked = {}
  for flow in pairs(picks[me]) do picked[#picked + 1] = flow_of(flow) end
  table.sort(picked, is_flow_before)
  share.seq = seq
  -- What the last picks were charged virtually, the holder has told since. A tenant's levels in their order: what one is
  -- given back counts at the better ones that still have something.
  for _, flow in ipairs(picked) do
    local pick = picks[me][flow.name]
    adjust(flow, pick.weight, pick.head, -pick.slots)
  end
  picks[me] = {}
  for _, told in ipairs(spent) do
    state.spent = state.spent + told.amount
    if told.amount < 0 then
      adjust(told.flow, told.weight, -told.amount, -1)
    else
      wake(told.flow)
      charge(told.flow, told.weight, told.amount)
    end
  end
  take_turns(told_flows, last_flows)
  for _, flow in ipairs(told_flows) do open_row(me, flow) end
  put('rows:' .. me, rows[me])
end

------------------------------------------------------------------------------------------------------------ handing out

local function free()
  local slots = math.max(0, capacity - granted - zombie_sum)
  return is_frozen and math.min(slots, state.movable) or slots
end
local function grant(other, slots)
  other.granted, granted, other.is_changed = other.granted + slots, granted + slots, true
  if is_frozen then state.movable = math.max(0, state.movable - slots) end
end

-- What a call draws of a meter, by what the meter's name begins with: one request, its money, or its tokens. `call` is a
-- row or a pick.
local function draw_of(meter, call)
  local kind = meter:sub(1, 1)
  if kind == 'r' then return 1 end
  return kind == 'm' and call.money or call.head
end
-- What of a meter a holder was lent and its picks will not draw.
local function spare_of(holder, meter)
  local spare = lent[holder][meter] or 0
  for _, pick in pairs(picks[holder]) do spare = spare - draw_of(meter, pick) * pick.slots end
  return math.max(0, spare)
end
-- Lending is debit, so nobody draws what another may.
local function lend(holder, meter, amount)
  meters[meter].level, lent[holder][meter] = meters[meter].level - amount, (lent[holder][meter] or 0) + amount
end

-- The branch with the smallest counter; of two equal ones the first by name.
local function first_of(branches, by_name)
  local first
  for _, branch in pairs(branches) do
    if branch.open > 0 then
      local less = not first or not by_name and branch.counter < first.counter
      local equal = first and (by_name or branch.counter == first.counter)
      if less or equal and is_before(branch.name, first.name) then first = branch end
    end
  end
  return first
end

-- P0, then the group, the level, the flow with the smallest counter, then who waits longest.
local function first_row()
  read_counters()
  local candidates, with_p0 = groups, {}
  for _, level in pairs(terms.policy == 'hybrid' and levels or {}) do
    if level.is_p0 and level.open > 0 then with_p0[#with_p0 + 1], candidates = level.group, with_p0 end
  end
  local group = first_of(candidates)
  if not group then return nil end
  local level = first_of(group.levels, terms.policy == 'strict' or candidates == with_p0)
  read_counters(level)
  local flow, first = first_of(level.flows), nil
  for _, holder in ipairs(flow.holders) do
    local row = row_of(holder, flow)
    local is_earlier = not first or row.since < first.since
    local is_equal = first and row.since == first.since
    if row.open > 0 and (is_earlier or is_equal and is_before(holder, first.holder)) then first = row end
  end
  return first
end

-- The first row of the only holder where anybody waits, unless that row has all its slots.
local function row_that_waits_alone()
  local alone
  for holder, open in pairs(open_rows) do
    if open > 0 then
      if alone then return nil end
      alone = holder
    end
  end
  local row = alone and row_of(alone, flow_of(string.match(rows[alone], '\n(%S+)')))
  return row and row.open > 0 and row or nil
end

-- What a row's next call lacks: whether anything, and how long until it comes, if time is what brings it. And what is to
-- be lent if it lacks nothing.
local function lacking(row, call)
  local lacks, wait, missing = false, 0, {}
  for name, meter in pairs(meters) do
    local amount, spare, is_rate = draw_of(name, call), spare_of(row.holder, name), meter.window > 0
    local short = (is_rate and math.min(amount, meter.burst) or amount) - spare - meter.level
    missing[name] = math.max(0, amount - spare)
    if short > 0 then
      -- Of a longer wait it tells a part.
      local parts = math.max(0, math.min(short, MOST_REFILL) * meter.window - meter.fraction)
      lacks, wait = true, is_rate and wait and math.max(wait, math.ceil(parts / meter.amount))
    end
  end
  return lacks, wait, missing
end

-- Gives a row a slot with all that its next call draws, or nothing.
local function pick(row)
  -- A row's picks are charged alike: their calls' own charges are told when they start.
  local call = row.pick or row
  local lacks, wait, missing = lacking(row, call)
  if lacks then return false, wait end
  for name, amount in pairs(missing) do lend(row.holder, name, amount) end
  local given = row.pick or {slots = 0, weight = row.weight, head = row.head, money = row.money}
  given.slots, given.at, picks[row.holder][row.flow.name] = given.slots + 1, now, given
  grant(shares[row.holder], 1)
  charge(row.flow, row.weight, call.head)
  if row.open == 1 then
    count(row.flow, 'open', -1)
    open_rows[row.holder] = open_rows[row.holder] - 1
    -- Where that was the last of its flow, another one of its tenant may have its turn.
    if row.flow.rows.open == 0 then wake(row.flow.owner.open) end
  end
  return true
end

-- What is free goes out, one slot with its tokens at a time, to the row whose turn it is. Whoever waits alone is served in
-- its own order, which is then the global one. It knows that order beyond its first row, so of an account with rates it
-- gets one turn at a time, and the slots it may use ahead.
local function walk()
  local row, served = row_that_waits_alone(), {}
  local turns = row and row.holder == me and next(meters) and 1 or math.huge
  while turns > 0 and free() > 0 do
    row = row or first_row()
    if not row then break end
    local is_given, wait = pick(row)
    if not is_given then return served, wait end
    served[row.holder], row, turns = true, nil, turns - 1
  end
  return served
end

-- Whether somebody waits at another holder, or more is granted than there is since the capacity was lowered.
local function is_contended(name)
  if granted + zombie_sum > capacity then return true end
  for other, open in pairs(open_rows) do
    if other ~= name and open > 0 then return true end
  end
  return false
end

-- While nobody waits elsewhere, the caller gets slots and tokens to start calls without asking: of what is left of a
-- meter a quarter of one holder's part.
local function lend_ahead()
  if want == 0 or is_contended(me) then return end
  local holders = 0
  for _, other in pairs(shares) do
    if other.renewed_at + other.lease > now then holders = holders + 1 end
  end
  grant(share, math.min(math.max(0, want - share.granted), free()))
  for name, meter in pairs(is_ahead and meters or {}) do
    local spare = spare_of(me, name)
    local target = math.floor(math.max(0, meter.level + spare) / (4 * math.max(1, holders)))
    lend(me, name, math.max(0, target - spare))
  end
end

-- Who must hear of it: those whose turn it was, and, once, who must hand back what comes free.
local function told_by_notice(served)
  local told = {}
  for name, other in pairs(shares) do
    local contended = is_contended(name) and 1 or 0
    local is_news = contended > other.contended and other.granted > 0
    if contended ~= other.contended then other.contended, other.is_changed = contended, true end
    if name ~= me and (is_news or served[name]) then told[#told + 1] = name end
  end
  return told
end

--------------------------------------------------------------------------------------------------------------- the call

-- %d needs 64 bits.
assert(int(2 ^ 52) == '4503599627370496', 'sluice needs a server of 64 bits')
if not read() then return redis.error_reply('ERR ' .. key .. ' is of format ' .. had.v) end
local is_stale = share and (incarnation < share.incarnation or incarnation == share.incarnation and seq <= share.seq)
if is_stale then
  now = latest_call_at()
  is_frozen = now < state.frozen_until and tonumber(terms.capacity) < UNCOUNTED
  for _, slots in pairs(zombies) do zombie_sum = zombie_sum + slots end
  for _, other in pairs(shares) do zombie_sum = zombie_sum + other.zombies end
  return reply(me)
end
local late = late_reply()
if late then return late end
tell_time()
watch_for_loss()
expire()
take_terms()
take_share()
thaw()
take_draws()
find_rows_of_others()
take_charges_and_rows()
local served, wait = walk()
lend_ahead()
sweep()
local told = told_by_notice(served)
put_counters()
write()
-- When nothing can fail any more. Who may not publish has a ledger all the same: others hear at their next call.
for _, name in ipairs(told) do redis.pcall('PUBLISH', 'sluice:notices', key .. ' ' .. name .. '\n' .. reply(name)) end
return reply(me, wait)
