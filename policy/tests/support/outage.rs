//! Replicas that are asked for more than there is, before a ledger that goes away and comes back: how soon all slots are
//! in use again, in virtual time, at the constants that are shipped.
//!
//! The holders are the product's own, and the ledger is any home of it: the function here, `sync.lua` in
//! `quota-service/tests/ledger_conformance.rs`.

use sluice_policy::holder::{Demand, FlowNames, Holder, LeaseTerms, Replica};
use sluice_policy::ledger::{FlowName, Row, SyncReply, SyncRequest, Synced, Terms, Version};
use sluice_policy::queue::{Flow, GroupIndex, Shares, TenantIndex};
use sluice_policy::units::{HolderId, Millis, Priority, Tokens};
use std::collections::BTreeMap;

pub(crate) const LEASE: LeaseTerms =
    LeaseTerms { lease: Millis(2_000), longest_request: Millis(600_000), shared: true };
pub(crate) const SLOTS: u32 = 40;
/// One way between a replica and the ledger.
const LATENCY_MS: u64 = 1;
/// A replica gives up waiting for an answer.
const TIMEOUT_MS: u64 = 500;
/// Before the outage: everybody has a lease, and the order has settled.
const WARM_UP_MS: u64 = 5_000;
/// How long is looked at to say how much of the pool is in use.
const LOOK_MS: u64 = 1_000;

/// Where the account is known.
pub(crate) trait Home {
    fn sync(&mut self, request: &SyncRequest, run: &str, now: Millis) -> Synced;

    /// Remembers how the account is now.
    fn save(&mut self);

    /// The account is as it was when it was saved last.
    fn restore(&mut self);

    /// The account is gone.
    fn lose(&mut self);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing arrives.
    Partition,
    /// The server stands still: what was sent to it arrives when it goes on.
    Stall,
    /// The server ends, and another run of it has all that it knew.
    Restart,
    /// Another server takes over, which had been told all but the last moments.
    Failover,
    /// The server ends, and another run of it knows nothing.
    Loss,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Outage {
    pub(crate) kind: Kind,
    pub(crate) lasts_ms: u64,
    pub(crate) replicas: u32,
    /// How long each call runs.
    pub(crate) call_ms: u64,
}

/// Of all slots, in thousandths.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recovery {
    pub(crate) before: u64,
    /// In the second that begins so long after the ledger is back.
    pub(crate) after: u64,
}

/// Lets an outage pass. Panics when more calls run than there are slots.
pub(crate) fn recover(home: &mut dyn Home, outage: Outage, after_ms: u64) -> Recovery {
    let mut world = World::new(home, outage);
    world.run(WARM_UP_MS - LOOK_MS);
    let before = world.usage();
    world.begin();
    world.run(outage.lasts_ms);
    world.end();
    world.run(after_ms);
    Recovery { before, after: world.usage() }
}

struct Gate {
    holder: Holder,
    flow: Flow,
    /// When each of its calls ends.
    running: Vec<u64>,
    waiting: u32,
    /// The number of its latest call.
    asked: u64,
    /// When the call that has no answer is given up.
    gives_up: Option<u64>,
}

enum Letter {
    Request(usize, Box<SyncRequest>),
    Reply(usize, SyncReply),
    Notice(usize, SyncReply),
}

struct World<'a> {
    home: &'a mut dyn Home,
    outage: Outage,
    gates: Vec<Gate>,
    /// By the moment of their arrival, and in the order in which they were sent.
    letters: BTreeMap<(u64, u64), Letter>,
    sent: u64,
    now: u64,
    run: u32,
    is_away: bool,
    /// Slots in use, times milliseconds.
    used: u64,
    started: u64,
    /// Calls that were not answered.
    failures: u64,
}

/// By the server's clock.
const EPOCH_MS: u64 = 1_790_000_000_000;

struct Names;

impl FlowNames for Names {
    fn name(&self, flow: Flow) -> Option<FlowName> {
        Some(FlowName { group: "".into(), level: flow.level, tenant: format!("t{}", flow.tenant.0).into() })
    }

    fn flow(&self, name: &FlowName) -> Option<Flow> {
        let tenant = TenantIndex(name.tenant.as_str().trim_start_matches('t').parse().ok()?);
        Some(Flow { group: GroupIndex(0), tenant, level: name.level })
    }
}

fn terms() -> Terms {
    let Shares { policy, levels, .. } = Shares::default();
    let (groups, meters) = (BTreeMap::new(), BTreeMap::new());
    Terms { version: Version::default(), capacity: SLOTS, policy, levels, groups, meters }
}

impl Gate {
    fn new(number: u32) -> Self {
        let replica = Replica { id: format!("gate-{number}").into(), incarnation: 1, lease: LEASE };
        let flow = Flow { group: GroupIndex(0), tenant: TenantIndex(number), level: Priority::LAST };
        Self { holder: Holder::new(&replica, terms()), flow, running: Vec::new(), waiting: 0, asked: 0, gives_up: None }
    }

    fn demand(&self) -> Demand {
        Demand { running: self.running(), waiting: self.waiting }
    }

    fn running(&self) -> u32 {
        u32::try_from(self.running.len()).unwrap()
    }

    /// The next moment at which something happens here by itself.
    fn next(&self, now: u64) -> u64 {
        let ends = self.running.iter().copied().min();
        let asks = self.holder.next_sync(self.demand(), Millis(now)).0.max(now);
        ends.into_iter().chain(self.gives_up).chain([asks]).min().unwrap_or(u64::MAX)
    }
}

impl<'a> World<'a> {
    fn new(home: &'a mut dyn Home, outage: Outage) -> Self {
        let gates = (0..outage.replicas).map(Gate::new).collect();
        Self {
            home,
            outage,
            gates,
            letters: BTreeMap::new(),
            sent: 0,
            now: 0,
            run: 0,
            is_away: false,
            used: 0,
            started: 0,
            failures: 0,
        }
    }

    fn usage(&mut self) -> u64 {
        let before = self.used;
        self.run(LOOK_MS);
        (self.used - before) * 1_000 / (LOOK_MS * u64::from(SLOTS))
    }

    fn begin(&mut self) {
        self.is_away = true;
        // What is under way is lost, but where the server only stands still.
        if self.outage.kind != Kind::Stall {
            self.letters.clear();
        }
    }

    fn end(&mut self) {
        self.is_away = false;
        match self.outage.kind {
            Kind::Partition | Kind::Stall => {}
            Kind::Restart => self.run += 1,
            Kind::Failover => {
                self.home.restore();
                self.run += 1;
            }
            Kind::Loss => {
                self.home.lose();
                self.run += 1;
            }
        }
        // Everything that was sent meanwhile, in its order.
        let late = std::mem::take(&mut self.letters);
        self.letters = late.into_iter().map(|((at, number), letter)| ((at.max(self.now), number), letter)).collect();
    }

    fn run(&mut self, for_ms: u64) {
        let end = self.now + for_ms;
        loop {
            self.settle();
            let gates = self.gates.iter().map(|gate| gate.next(self.now)).min().unwrap();
            let letter = self.letters.keys().next().filter(|_| !self.is_away).map(|(at, _)| *at);
            let next = gates.min(letter.unwrap_or(u64::MAX)).max(self.now + 1).min(end);
            self.used += u64::from(self.running()) * (next - self.now);
            self.now = next;
            if next == end {
                return;
            }
        }
    }

    /// All that happens at this moment.
    fn settle(&mut self) {
        for index in 0..self.gates.len() {
            self.attend(index);
        }
        while let Some((at, number)) = self.letters.keys().next().copied() {
            if at > self.now || self.is_away {
                break;
            }
            let letter = self.letters.remove(&(at, number));
            letter.into_iter().for_each(|letter| self.deliver(letter));
        }
        let running = self.running();
        assert!(running <= SLOTS, "{running} of {SLOTS} run: {:?}", self.outage);
    }

    fn attend(&mut self, index: usize) {
        let now = self.now;
        let gate = &mut self.gates[index];
        gate.running.retain(|ends| *ends > now);
        if gate.gives_up.is_some_and(|at| at <= now) {
            gate.gives_up = None;
            gate.holder.failed();
            self.failures += 1;
            // Far apart, as chance would have them.
            let chance = u16::try_from(self.failures * 7_919 % 65_536).unwrap();
            gate.holder.back_off(chance, Millis(now));
        }
        // There are always more who wait than there are slots.
        while gate.waiting < 2 * SLOTS {
            gate.waiting += 1;
            gate.holder.joined(gate.flow, &Names);
        }
        self.start(index);
        self.ask(index);
    }

    fn start(&mut self, index: usize) {
        let (now, call_ms) = (self.now, self.outage.call_ms);
        let gate = &mut self.gates[index];
        while gate.waiting > 0 && gate.holder.may_start(gate.flow, Tokens(1), gate.running(), Millis(now)) {
            gate.waiting -= 1;
            gate.holder.stopped_waiting();
            gate.holder.start(gate.flow, 1, Tokens(1));
            // They do not all end at once: each runs up to a quarter longer or shorter.
            self.started += 1;
            let spread = self.started * 7_919 % (call_ms / 2 + 1);
            gate.running.push(now + call_ms - call_ms / 4 + spread);
        }
    }

    fn ask(&mut self, index: usize) {
        let now = self.now;
        let gate = &mut self.gates[index];
        if !gate.holder.is_due(gate.demand(), Millis(now)) {
            return;
        }
        let row = Row {
            flow: Names.name(gate.flow).unwrap(),
            weight: 1,
            head: Tokens(1),
            money: 0,
            waiting: gate.waiting,
            waited: Millis(1_000),
        };
        let request = gate.holder.ask(gate.demand(), vec![row], &Names, Millis(now));
        (gate.asked, gate.gives_up) = (request.seq, Some(now + TIMEOUT_MS));
        self.send(Letter::Request(index, Box::new(request)));
    }

    /// While nobody is there, only a server that stands still gets what is sent.
    fn send(&mut self, letter: Letter) {
        if !self.is_away || self.outage.kind == Kind::Stall {
            self.sent += 1;
            self.letters.insert((self.now + LATENCY_MS, self.sent), letter);
        }
    }

    fn deliver(&mut self, letter: Letter) {
        let now = Millis(self.now);
        let index = match letter {
            Letter::Request(index, request) => return self.answer(index, &request),
            Letter::Reply(index, reply) => {
                let gate = &mut self.gates[index];
                if gate.gives_up.is_some() && gate.holder.answered(&reply, &Names, now) {
                    gate.gives_up = None;
                } else if reply.late && reply.seq == gate.asked {
                    gate.gives_up = Some(self.now);
                }
                index
            }
            Letter::Notice(index, notice) => {
                self.gates[index].holder.noticed(&notice, &Names);
                index
            }
        };
        self.attend(index);
    }

    fn answer(&mut self, index: usize, request: &SyncRequest) {
        // The replica that would take over does not hear of the last calls.
        if self.outage.kind == Kind::Failover && self.now < WARM_UP_MS - 20 {
            self.home.save();
        }
        let synced = self.home.sync(request, &format!("run{}", self.run), Millis(EPOCH_MS + self.now));
        self.send(Letter::Reply(index, synced.reply));
        for (holder, notice) in synced.notices {
            self.send(Letter::Notice(number_of(&holder), notice));
        }
    }

    fn running(&self) -> u32 {
        self.gates.iter().map(Gate::running).sum()
    }
}

fn number_of(holder: &HolderId) -> usize {
    holder.as_str().trim_start_matches("gate-").parse().unwrap()
}
