//! Counts what happens to the calls of a trace, and makes the report of it.

use super::report::{Fairness, PoolUse, Report, Row, Waits};
use super::trace::{Arrival, Trace};
use crate::config::Config;
use crate::units::{Millis, PoolName, Priority, Tokens};
use crate::wire::{Reason, Usage};
use std::collections::BTreeMap;

/// What happened to the calls of one tenant at one level.
#[derive(Clone, Debug, Default)]
struct Count {
    asked: u64,
    served: u64,
    input: u64,
    output: u64,
    charge: u64,
    /// Of every call that started, in milliseconds; the timeout is at most an hour.
    waits: Vec<u32>,
    left_waiting: u64,
    left_running: u64,
    refused: BTreeMap<&'static str, u64>,
}

/// A pool's slots over time, in slot-milliseconds.
#[derive(Clone, Debug, Default)]
struct Slots {
    used: u128,
    there: u128,
}

/// Calls are counted by tenant and level, both by index.
#[derive(Debug)]
pub(super) struct Tally {
    counts: Vec<Count>,
    slots: Vec<Slots>,
    /// Of everything that happened, in its order.
    digest: u64,
}

impl Tally {
    pub(super) fn new(trace: &Trace, pools: usize) -> Self {
        let counts = vec![Count::default(); trace.tenants.len() * Priority::COUNT];
        Self { counts, slots: vec![Slots::default(); pools], digest: DIGEST_BASIS }
    }

    pub(super) fn asked(&mut self, call: &Arrival, level: Priority) {
        self.count(call, level).asked += 1;
    }

    pub(super) fn started(&mut self, call: &Arrival, level: Priority, waited: Millis) {
        self.note(1, waited.0);
        self.count(call, level).waits.push(u32::try_from(waited.0).unwrap_or(u32::MAX));
    }

    pub(super) fn refused(&mut self, call: &Arrival, level: Priority, reason: Reason, retry_after: Option<Millis>) {
        self.note(2, retry_after.map_or(u64::MAX, |wait| wait.0));
        *self.count(call, level).refused.entry(reason.as_str()).or_default() += 1;
    }

    pub(super) fn ended(&mut self, call: &Arrival, level: Priority, usage: &Usage, charge: Tokens) {
        self.note(3, charge.0);
        let count = self.count(call, level);
        count.served += 1;
        count.spend(usage, charge);
    }

    pub(super) fn left_waiting(&mut self, call: &Arrival, level: Priority) {
        self.note(4, 0);
        self.count(call, level).left_waiting += 1;
    }

    pub(super) fn left_running(&mut self, call: &Arrival, level: Priority, usage: &Usage, charge: Tokens) {
        self.note(5, charge.0);
        let count = self.count(call, level);
        count.left_running += 1;
        count.spend(usage, charge);
    }

    /// A span in which a pool had `running` of `capacity` slots in use.
    pub(super) fn passed(&mut self, pool: usize, span: Millis, running: u32, capacity: u32) {
        if let Some(slots) = self.slots.get_mut(pool) {
            slots.used += u128::from(span.0) * u128::from(running);
            slots.there += u128::from(span.0) * u128::from(capacity);
        }
    }

    /// Takes a fact into the digest: FNV-1a over 64-bit words instead of bytes.
    pub(super) fn note(&mut self, what: u64, value: u64) {
        for word in [what, value] {
            self.digest = (self.digest ^ word).wrapping_mul(DIGEST_PRIME).rotate_left(29);
        }
    }

    fn count(&mut self, call: &Arrival, level: Priority) -> &mut Count {
        let index = call.tenant * Priority::COUNT + level.index();
        if index >= self.counts.len() {
            self.counts.resize(index + 1, Count::default());
        }
        &mut self.counts[index]
    }

    pub(super) fn report(self, trace: &Trace, config: &Config, pools: &[PoolName], ended: Millis) -> Report {
        let use_of = |(name, slots): (&PoolName, &Slots)| PoolUse {
            pool: name.to_string(),
            utilisation_ppm: ppm(slots.used, slots.there),
        };
        let pools = pools.iter().zip(&self.slots).map(use_of).collect();
        let mut fairness = FairnessSum::default();
        let mut rows = Vec::new();
        let mut total = Count::default();
        for (tenant, counts) in trace.tenants.iter().zip(self.counts.chunks(Priority::COUNT)) {
            let weight = config.tenants.get(tenant).map_or(1, |tenant| tenant.weight);
            fairness.add(counts, weight);
            for (level, count) in Priority::all().zip(counts).filter(|(_, count)| count.asked > 0) {
                total.take(count);
                rows.push(count.row(tenant.as_str(), Some(level)));
            }
        }
        rows.sort_by(|a: &Row, b: &Row| (&a.tenant, a.level).cmp(&(&b.tenant, b.level)));
        let digest = format!("{:016x}", self.digest);
        let (total, fairness, adapted) = (total.row("all", None), fairness.index(), BTreeMap::new());
        Report { ended_ms: ended.0, total, rows, pools, fairness, adapted, digest }
    }
}

const DIGEST_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const DIGEST_PRIME: u64 = 0x0000_0100_0000_01b3;

impl Count {
    fn spend(&mut self, usage: &Usage, charge: Tokens) {
        self.input = self.input.saturating_add(usage.input.0);
        self.output = self.output.saturating_add(usage.output.0);
        self.charge = self.charge.saturating_add(charge.0);
    }

    fn take(&mut self, other: &Count) {
        self.asked += other.asked;
        self.served += other.served;
        self.input = self.input.saturating_add(other.input);
        self.output = self.output.saturating_add(other.output);
        self.charge = self.charge.saturating_add(other.charge);
        self.waits.extend_from_slice(&other.waits);
        self.left_waiting += other.left_waiting;
        self.left_running += other.left_running;
        for (reason, count) in &other.refused {
            *self.refused.entry(reason).or_default() += count;
        }
    }

    fn row(&self, tenant: &str, level: Option<Priority>) -> Row {
        Row {
            tenant: tenant.to_owned(),
            level,
            asked: self.asked,
            served: self.served,
            input_tokens: self.input,
            output_tokens: self.output,
            charge: self.charge,
            wait_ms: Waits::of(self.waits.clone()),
            left_waiting: self.left_waiting,
            left_running: self.left_running,
            refused: self.refused.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect(),
        }
    }
}

/// Gathers for each tenant what it was charged per weight, and how many of its calls were served.
#[derive(Default)]
struct FairnessSum {
    charges: Vec<u64>,
    shares: Vec<u64>,
}

impl FairnessSum {
    fn add(&mut self, counts: &[Count], weight: u64) {
        let sum = |of: fn(&Count) -> u64| counts.iter().map(of).fold(0, u64::saturating_add);
        let asked = sum(|count| count.asked);
        if asked > 0 {
            self.charges.push(sum(|count| count.charge) / weight.max(1));
            self.shares.push(ppm(sum(|count| count.served).into(), asked.into()));
        }
    }

    fn index(&self) -> Fairness {
        Fairness { charge_ppm: jain_ppm(&self.charges), served_ppm: jain_ppm(&self.shares) }
    }
}

/// Jain's index (Σx)² / (n·Σx²) in millionths (Jain, Chiu, Hawe 1984); a million when nobody had anything.
pub(super) fn jain_ppm(values: &[u64]) -> u64 {
    // Down to 40 bits each, so that the squares of a million tenants fit 128 bits and a factor of a million too.
    let largest = values.iter().copied().max().unwrap_or(0);
    let shift = 24_u32.saturating_sub(largest.leading_zeros());
    let (mut sum, mut squares) = (0_u128, 0_u128);
    for value in values.iter().map(|value| u128::from(value >> shift)) {
        sum += value;
        squares += value * value;
    }
    let n = u128::try_from(values.len()).unwrap_or(1);
    match squares {
        0 => 1_000_000,
        _ => ppm(sum * sum / n.max(1), squares),
    }
}

/// A part of a whole in millionths; 0 of nothing.
fn ppm(part: u128, whole: u128) -> u64 {
    u64::try_from(part * 1_000_000 / whole.max(1)).unwrap_or(u64::MAX)
}
