-- One account's ledger in Redis: the translation of AccountLedger::sync (policy/src/ledger.rs), replayed against it
-- by quota-service/tests/ledger_conformance.rs. Integers only; one key; all or nothing.
--
-- KEYS[1]  the account, a hash. Fields (H is a holder): granted:H incarnation:H seq:H renewed_ms:H lease_ms:H spent:H,
--          zombies:<free at, ms> = slots, spent_before, level:<bucket>, levels_at_ms, capacity, v (format version).
-- ARGV     holder incarnation seq keep want capacity lease_ms longest_request_ms spent (bucket level)*
-- returns  seq granted zombies now_ms restored_age_ms|-1 (bucket level)*
local key, holder = KEYS[1], ARGV[1]
local incarnation, seq, keep, want = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local capacity, lease, longest, spent = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Lua prints numbers of 1e14 and above in exponents, and Redis truncates those it returns.
local function int(number) return string.format('%.0f', number) end
local function set(field, number) redis.call('HSET', key, field, int(number)) end

local fields, flat = {}, redis.call('HGETALL', key)
for i = 1, #flat, 2 do fields[flat[i]] = tonumber(flat[i + 1]) or 0 end

-- Zombies that have come free are forgotten; shares whose lease has ended become zombies.
local granted_sum, zombie_sum, expired, free_at = 0, 0, 0, now + longest
local levels, has_levels = {}, false
for field, value in pairs(fields) do
  local kind, name = string.match(field, '^(%a+):(.*)$')
  if kind == 'zombies' then
    if tonumber(name) > now then zombie_sum = zombie_sum + value else redis.call('HDEL', key, field) end
  elseif kind == 'granted' then
    if value > 0 and fields['renewed_ms:' .. name] + fields['lease_ms:' .. name] <= now then
      expired = expired + value
      fields[field] = 0
      set(field, 0)
    end
    granted_sum = granted_sum + fields[field]
  elseif kind == 'level' then
    levels[name], has_levels = value, true
  end
end

local function add_zombies(slots)
  if slots > 0 then
    redis.call('HINCRBY', key, 'zombies:' .. int(free_at), int(slots))
    zombie_sum = zombie_sum + slots
  end
end
add_zombies(expired)

local old_incarnation, old_seq = fields['incarnation:' .. holder], fields['seq:' .. holder]
local granted = fields['granted:' .. holder] or 0

if old_incarnation and (incarnation < old_incarnation or (incarnation == old_incarnation and seq <= old_seq)) then
  return {int(old_seq), int(granted), int(zombie_sum), int(now), '-1'}
end

local is_new = not old_incarnation or old_incarnation < incarnation
if is_new and old_incarnation then
  set('spent_before', (fields['spent_before'] or 0) + (fields['spent:' .. holder] or 0))
  add_zombies(granted)
  granted_sum, granted = granted_sum - granted, 0
end

local kept = math.min(granted, keep)
local free = math.max(0, capacity - (granted_sum - granted + kept) - zombie_sum)
granted = kept + math.min(math.max(0, want - kept), free)

set('v', 1)
set('capacity', capacity)
set('granted:' .. holder, granted)
set('incarnation:' .. holder, incarnation)
set('seq:' .. holder, seq)
set('renewed_ms:' .. holder, now)
set('lease_ms:' .. holder, lease)
set('spent:' .. holder, spent)

local reply = {int(seq), int(granted), int(zombie_sum), int(now), '-1'}
if is_new and has_levels then
  reply[5] = int(math.max(0, now - fields['levels_at_ms']))
  for name, level in pairs(levels) do
    reply[#reply + 1] = name
    reply[#reply + 1] = int(level)
  end
else
  for name in pairs(levels) do redis.call('HDEL', key, 'level:' .. name) end
  for i = 10, #ARGV, 2 do redis.call('HSET', key, 'level:' .. ARGV[i], ARGV[i + 1]) end
  set('levels_at_ms', now)
end
return reply
