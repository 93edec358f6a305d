//! A crowd before one pool, for measurements of the core: ten thousand tenants over all levels, and a long queue.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_policy::admission::{Admission, Decision, Event};
use sluice_policy::config::Config;
use sluice_policy::config::reader::read_document;
use sluice_policy::holder::{LeaseTerms, Replica};
use sluice_policy::ledger::{AccountLedger, Server};
use sluice_policy::queue::{ChargedBy, FairQueue, Flow, GroupIndex, QueueSettings, TenantIndex, Waiter};
use sluice_policy::simulate::SplitMix64;
use sluice_policy::units::{AdmissionId, Millis, PoolName, Priority, TenantId, Tokens};
use sluice_policy::wire::{AdmissionRequest, KeyProof, Outcome, Settlement, Usage, UsageSource, WIRE_VERSION};
use std::collections::VecDeque;

const TENANTS: u64 = 10_000;
const SLOTS: u64 = 64;
/// One ledger call lasts for the whole measurement.
const LEASE: LeaseTerms = LeaseTerms { lease: Millis(86_400_000), longest_request: Millis(86_400_000), shared: true };

/// The core with its queue, and what is needed to keep it busy.
pub struct Crowd {
    core: Admission,
    tenants: Vec<TenantId>,
    running: VecDeque<AdmissionId>,
    events: Vec<Event>,
    random: SplitMix64,
    asked: u64,
    now: Millis,
}

/// A call that is about to be made; making it up is not part of what is measured.
pub struct Prepared {
    tenant: TenantId,
    request: AdmissionRequest,
}

impl Crowd {
    /// A core in which all slots are taken and nobody waits.
    ///
    /// # Errors
    /// When the core does not do as it should.
    pub fn new(seed: u64) -> Result<Self> {
        let config = read_document(&document(), Config::read)?;
        let tenants = config.tenants.keys().cloned().collect();
        let core = Admission::new(config, &Replica { id: "bench".into(), incarnation: 1, lease: LEASE }, Millis(0));
        let (running, random) = (VecDeque::new(), SplitMix64::new(seed));
        let mut crowd = Self { core, tenants, running, events: Vec::new(), random, asked: 0, now: Millis(1) };
        crowd.take_all_slots()?;
        Ok(crowd)
    }

    /// A ledger that begins empty grants nothing for a lease, in which whoever held slots before would say so.
    fn take_all_slots(&mut self) -> Result<()> {
        let mut ledger = AccountLedger::default();
        self.ask(&mut ledger);
        self.now = self.now.plus(LEASE.lease);
        let slots = usize::try_from(SLOTS)?;
        // Slots come a few at a time: each call that takes one asks for more. Little time passes, or the core would expect
        // of every call that it runs as long as these have.
        for _ in 0..2 * SLOTS {
            if self.running.len() + self.waiting() < slots {
                let call = self.prepare();
                self.request(&call);
            }
            self.now = self.now.plus(Millis(1));
            self.ask(&mut ledger);
            self.advance();
        }
        let running = self.running.len();
        ensure!(running == slots && self.waiting() == 0, "{running} of {SLOTS} slots are in use");
        Ok(())
    }

    fn ask(&mut self, ledger: &mut AccountLedger) {
        while let Some((account, request)) = self.core.ask_ledger(self.now) {
            let reply = ledger.sync(&request, Server { run: "bench", now: self.now }).reply;
            self.core.ledger_answered(&account, Some(&reply), self.now);
        }
    }

    /// Lets calls join the queue until so many wait.
    ///
    /// # Errors
    /// When one is refused.
    pub fn fill(&mut self, waiters: usize) -> Result<()> {
        for _ in 0..waiters {
            let call = self.prepare();
            let decision = self.request(&call);
            ensure!(decision == Decision::Queued, "a call did not join the queue: {decision:?}");
        }
        Ok(())
    }

    /// Makes up a call of any tenant.
    pub fn prepare(&mut self) -> Prepared {
        self.asked += 1;
        let pick = usize::try_from(self.random.below(TENANTS)).unwrap_or(0);
        let request = AdmissionRequest {
            version: WIRE_VERSION,
            id: AdmissionId::from(format!("worker-1-{}", self.asked)),
            key: KeyProof { id: None, digest: String::new() },
            model: Some("model".to_owned()),
            pool: None,
            input_tokens: Tokens(self.random.log_uniform(6, 13)),
            max_tokens: Some(Tokens(512)),
            prompts: 1,
            sequences: 1,
            stream: false,
            body_bytes: 4_000,
            priority: None,
            deadline_ms: None,
        };
        Prepared { tenant: self.tenants[pick].clone(), request }
    }

    /// The end of the oldest running call, as its settlement tells it.
    ///
    /// # Errors
    /// When nothing runs.
    pub fn next_end(&mut self) -> Result<Settlement> {
        let id = self.running.pop_front().context("nothing runs")?;
        let output = Tokens(self.random.log_uniform(4, 9));
        let usage = Usage {
            source: UsageSource::Reported,
            input: Tokens(500),
            output,
            cached: Tokens(0),
            reasoning: Tokens::ZERO,
        };
        Ok(Settlement { id, outcome: Outcome::Completed, usage, charge_to: None, timing: None, abandoned: false })
    }

    /// One turn of everything: a call joins, one ends, and the next one starts.
    pub fn turn(&mut self, call: &Prepared, end: &Settlement) {
        self.now = self.now.plus(Millis(1));
        self.request(call);
        self.core.settle(end, self.now);
        self.advance();
    }

    /// Waiting calls.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let depth = |level| self.core.queue_depth(&PoolName::from("pool"), level);
        Priority::all().map(depth).sum()
    }

    fn request(&mut self, call: &Prepared) -> Decision {
        let decision = self.core.request(&call.tenant, None, &call.request, self.now);
        if let Decision::Admitted(_) = decision {
            self.running.push_back(call.request.id.clone());
        }
        decision
    }

    fn advance(&mut self) {
        self.core.advance_into(self.now, &mut self.events);
        for event in self.events.drain(..) {
            if let Event::Started(id, _) = event {
                self.running.push_back(id);
            }
        }
    }
}

/// The queue alone, with the same tenants and slots.
pub struct Line {
    queue: FairQueue,
    running: VecDeque<(Waiter, ChargedBy)>,
    random: SplitMix64,
    joined: u64,
}

impl Line {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let (depth, bytes) = (usize::MAX, u64::MAX);
        let defaults = QueueSettings::default();
        let settings = QueueSettings { depth_per_level: depth, depth_per_tenant: depth, bytes, ..defaults };
        let random = SplitMix64::new(seed);
        Self { queue: FairQueue::new(settings), running: VecDeque::new(), random, joined: 0 }
    }

    /// Lets so many join.
    ///
    /// # Errors
    /// When the queue takes one not in.
    pub fn fill(&mut self, waiters: usize) -> Result<()> {
        for _ in 0..waiters {
            let waiter = self.prepare();
            self.join(waiter)?;
        }
        Ok(())
    }

    /// Makes up a waiter of any tenant; one millisecond after the one before.
    pub fn prepare(&mut self) -> Waiter {
        self.joined += 1;
        let tenant = self.random.below(TENANTS);
        let level = u8::try_from(tenant % 10).ok().and_then(|level| Priority::try_from(level).ok());
        let flow = Flow {
            group: GroupIndex::default(),
            tenant: TenantIndex(u32::try_from(tenant).unwrap_or(0)),
            level: level.unwrap_or(Priority::LAST),
        };
        let charge = Tokens(self.random.log_uniform(6, 13));
        Waiter { key: self.joined, flow, charge, bytes: 4_000, deadline: Millis(3_600_000 + self.joined) }
    }

    /// One joins, the head starts, and the oldest running one ends, for half of what was reserved.
    ///
    /// # Errors
    /// When the queue takes nobody in or lets nobody out.
    pub fn turn(&mut self, waiter: Waiter) -> Result<()> {
        self.join(waiter)?;
        let (ticket, _) = self.queue.head().context("nobody waits")?;
        let started = self.queue.leave(ticket).context("the head does not wait")?;
        let by = self.queue.charge(started.flow, started.charge);
        self.running.push_back((started, by));
        if self.running.len() > usize::try_from(SLOTS)?
            && let Some((ended, by)) = self.running.pop_front()
        {
            self.queue.correct(ended.flow, by, ended.charge, Tokens(ended.charge.0 / 2));
        }
        Ok(())
    }

    fn join(&mut self, waiter: Waiter) -> Result<()> {
        self.queue.join(waiter).map(drop).map_err(|full| anyhow::anyhow!("the queue is full: {full:?}"))
    }
}

/// Tenants at all levels, and a queue that holds everyone.
fn document() -> Value {
    let tenant = |index: u64| json!({"id": format!("tenant-{index}"), "priority": {"default": index % 10}});
    json!({
        "queue": {"depth_per_level": 1_000_000, "depth_per_tenant": 1_000_000, "timeout_ms": 3_600_000,
            "bytes": 1_u64 << 40, "bytes_per_tenant": 1_u64 << 40},
        "pools": [{"name": "pool", "models": ["model"], "capacity": {"concurrent": SLOTS}, "context_length": 16_384}],
        "tenants": (0..TENANTS).map(tenant).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_begins_with_every_slot_in_use_and_is_as_long_after_a_turn_as_before() {
        let mut crowd = Crowd::new(1).unwrap();
        crowd.fill(100).unwrap();
        for _ in 0..100 {
            let (call, end) = (crowd.prepare(), crowd.next_end().unwrap());
            crowd.turn(&call, &end);
        }
        assert_eq!((crowd.waiting(), crowd.running.len()), (100, 64));
    }
}
