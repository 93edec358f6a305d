//! What a search begins with, and how much may happen in it.

use crate::mutant::Mutant;
use sluice_policy::holder::{FlowNames, LeaseTerms, Replica};
use sluice_policy::ledger::{FlowName, Limit, MeterName, Terms, Version};
use sluice_policy::queue::{Flow, GroupIndex, SharePolicy, TenantIndex};
use sluice_policy::units::{GroupName, HolderId, Millis, Priority, TenantId, Tokens};
use std::collections::BTreeMap;

/// One configuration of the protocol, with its bounds. Within them everything happens in every order.
#[derive(Clone, Debug)]
pub struct Scene {
    pub name: &'static str,
    /// How many wait at most, by gate: they turn up at any time, and others after them.
    pub gates: Vec<Waiting>,
    /// Of the account, one after the other as configurations are reloaded.
    pub capacities: Vec<u32>,
    pub lease: Millis,
    pub longest_request: Millis,
    /// Time moves by so much at once, and everything that is due by time falls on a multiple of it.
    pub step: Millis,
    /// How many superseded calls of a gate stay under way, for any time; of more the oldest is lost.
    pub stragglers: usize,
    /// How many notices to a gate stay under way, for any time; of more the one that tells least is lost.
    pub notices: usize,
    /// Whether the gates have their first leases when it begins. Otherwise the ledger has never heard of anybody.
    pub settled: bool,
    pub most: Most,
    pub meters: BTreeMap<MeterName, Limit>,
    /// Weighted tokens of each call.
    pub charge: Tokens,
    /// Whether the ledger is elsewhere, so that rates and budgets are lent before they are needed.
    pub shared: bool,
    /// After how many calls that nobody needed holders rest; `None`: they stay warm.
    pub on_demand: Option<u8>,
    /// Whether answers to superseded calls stay under way. A holder that ignores them is as if they were lost.
    pub stale_answers: bool,
    /// How long a gate waits for an answer, as far as the ledger is told; `None`: no call is ever late.
    pub patience: Option<Millis>,
    /// Whether gates hear of another server by other accounts, too.
    pub hears: bool,
    /// In how many steps, from any world, all slots are in use if nothing more goes wrong (I8); `None`: that is not asked.
    pub progress: Option<u8>,
    pub mutant: Option<Mutant>,
}

/// Calls that wait, by line.
pub type Waiting = [u8; LINES];

/// A line of callers: P0, and P1.
pub const LINES: usize = 2;

/// How often something may happen, in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Most {
    /// Times that time passes, by a step.
    pub passes: u8,
    /// Callers that turn up.
    pub arrivals: u8,
    /// Calls that are charged `charge`; later ones are charged nothing.
    pub charges: u8,
    /// Callers that leave while they wait.
    pub leaves: u8,
    /// Letters that arrive, and arrive again.
    pub copies: u8,
    pub crashes: u8,
    /// Failovers to a replica that lags.
    pub failovers: u8,
    /// Times that this replica catches up with the ledger; at the start it has.
    pub catch_ups: u8,
    /// Failovers that are taken back: the server of before answers again, as it was then.
    pub failbacks: u8,
    /// Failovers to a replica that knows nothing.
    pub flushes: u8,
    /// Jumps of the server's clock, forth or back.
    pub jumps: u8,
}

/// No bound.
pub const FOR_EVER: u8 = u8::MAX;

/// What the server's clock jumps by.
pub const JUMP_MS: u64 = 1_000_000;

/// The gates' clocks at the start.
pub const BEGIN: Millis = Millis(1_000);

/// The server's clock at the start, so that it can jump back.
pub const EPOCH: Millis = Millis(10_000_000);

impl Scene {
    /// Two gates with `slots` between them, nobody waits, and nothing goes wrong but delay, loss and reordering.
    pub fn calm(name: &'static str, slots: u32) -> Self {
        Self {
            name,
            gates: vec![[0; LINES]; 2],
            capacities: vec![slots],
            lease: Millis(100),
            longest_request: Millis(100),
            step: Millis(100),
            stragglers: 0,
            notices: 1,
            settled: true,
            most: Most { passes: FOR_EVER, arrivals: FOR_EVER, ..Most::default() },
            meters: BTreeMap::new(),
            charge: Tokens(1),
            shared: true,
            on_demand: None,
            stale_answers: false,
            patience: None,
            hears: false,
            progress: None,
            mutant: None,
        }
    }

    pub fn replica(&self, gate: usize, incarnation: u64) -> Replica {
        Replica {
            id: holder_id(gate),
            incarnation,
            lease: LeaseTerms { lease: self.lease, longest_request: self.longest_request, shared: self.shared },
        }
    }

    /// The terms after so many reloads.
    pub fn terms(&self, reloads: u8) -> Terms {
        let capacity = self.capacities.get(usize::from(reloads)).or(self.capacities.last());
        Terms {
            version: Version { file: 1 + u64::from(reloads), ..Version::default() },
            capacity: capacity.copied().unwrap_or(0),
            policy: SharePolicy::Hybrid,
            levels: [1; Priority::COUNT],
            groups: BTreeMap::new(),
            meters: self.meters.clone(),
        }
    }

    /// What bounds it, in words.
    pub fn bounds(&self) -> String {
        let capacities: Vec<String> = self.capacities.iter().map(u32::to_string).collect();
        let steps = |time: Millis| time.0 / self.step.0;
        let (lease, longest) = (steps(self.lease), steps(self.longest_request));
        let (gates, capacities) = (self.gates.len(), capacities.join(" → "));
        let plural = if gates == 1 { "" } else { "s" };
        let mut text = format!("{gates} gate{plural}, C = {capacities}, L = {lease}, D = {longest}");
        let Most { passes, arrivals, leaves, copies, crashes, failovers, failbacks, flushes, jumps, .. } = self.most;
        let named = [
            (passes, "step", "steps"),
            (arrivals, "caller", "callers"),
            (leaves, "hang-up", "hang-ups"),
            (copies, "copy", "copies"),
            (crashes, "crash", "crashes"),
            (failovers, "failover", "failovers"),
            (failbacks, "failback", "failbacks"),
            (flushes, "loss", "losses"),
            (jumps, "jump", "jumps"),
        ];
        for (number, one, several) in named {
            match number {
                0 => {}
                1 => text.push_str(&format!(", 1 {one}")),
                FOR_EVER => text.push_str(&format!(", any {several}")),
                number => text.push_str(&format!(", {number} {several}")),
            }
        }
        text
    }

    pub fn most_slots(&self) -> u32 {
        self.capacities.iter().copied().max().unwrap_or(0)
    }

    /// Whether the ledger may lose what it knew.
    pub fn can_forget(&self) -> bool {
        self.most.failovers > 0 || self.most.flushes > 0
    }
}

/// `a`, `b`, `c`.
pub fn holder_id(gate: usize) -> HolderId {
    HolderId::from(gate_name(gate))
}

pub fn gate_name(gate: usize) -> &'static str {
    ["a", "b", "c", "d"].get(gate).copied().unwrap_or("?")
}

pub fn gate_of(holder: &HolderId) -> Option<usize> {
    (0..4).find(|gate| gate_name(*gate) == holder.as_str())
}

/// Flows as the gates know them: line 0 is P0, line 1 is P1.
pub struct Names;

pub fn flow(line: usize) -> Flow {
    let level = Priority::all().nth(line).unwrap_or(Priority::LAST);
    Flow { group: GroupIndex(0), tenant: TenantIndex(0), level }
}

pub fn flow_name(line: usize) -> FlowName {
    FlowName { group: GroupName::from(""), level: flow(line).level, tenant: TenantId::from("t") }
}

impl FlowNames for Names {
    fn name(&self, flow: Flow) -> Option<FlowName> {
        Some(flow_name(flow.level.index()))
    }

    fn flow(&self, name: &FlowName) -> Option<Flow> {
        Some(flow(name.level.index()))
    }
}
