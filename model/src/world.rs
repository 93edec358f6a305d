//! The state of a search: gates, the ledger, letters between them, and what really runs.

use crate::scene::{BEGIN, EPOCH, LINES, Most, Names, Scene, Waiting, flow_name, holder_id};
use sluice_policy::holder::{Demand, Holder, Servers};
use sluice_policy::ledger::{AccountLedger, Row, SyncReply, SyncRequest};
use sluice_policy::units::{HolderId, Millis, Tokens};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Everything at one moment. Its hash is of its view (`view.rs`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct World {
    /// By the gates' own clocks, which agree.
    pub now: Millis,
    pub server: Server,
    pub ledger: Arc<AccountLedger>,
    pub gates: Vec<Arc<Gate>>,
    /// When calls of crashed gates end at the latest, and whose they were. They always run so long: nothing depends on it,
    /// so it is the worst.
    pub orphans: Vec<(Millis, usize)>,
    /// Under way; they arrive in any order, or never.
    pub letters: Vec<Arc<Letter>>,
    pub left: Most,
    /// The largest capacity in force since what was handed out last fitted in.
    pub bound: u32,
    pub truth: Arc<Truth>,
    /// For holders, a moment this long ago is as old as any.
    pub lease: Millis,
    /// For the ledger.
    pub forgotten_after: Millis,
}

/// The ledger's server, as far as it is not the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub run: u8,
    pub clock: Millis,
    /// Whether it has jumped, or may.
    pub is_unsteady: bool,
    /// Whether it has lost something, or may.
    pub is_lossy: bool,
    /// What the replica knows that would take over.
    pub replica: Option<Arc<AccountLedger>>,
    /// What the server of before knew when another took over, and its run.
    pub before: Option<(u8, Arc<AccountLedger>)>,
    /// Whether that one may answer again.
    pub may_come_back: bool,
    /// Gates that the ledger knew nothing of when it took over, and has not heard of since.
    pub unheard: BTreeSet<usize>,
    /// Whether it knew nothing at all.
    pub is_empty: bool,
    /// It stopped waiting for a gate that is beyond what is promised.
    pub is_excused: bool,
}

/// A replica, or what is left of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Gate {
    /// `None` while it is down.
    pub holder: Option<Holder>,
    /// What its process knows of the ledger's servers, from other accounts too.
    pub servers: Servers,
    pub incarnation: u64,
    /// When its calls end at the latest, in order.
    pub running: Vec<Millis>,
    pub waiting: Waiting,
    /// Configurations it has taken over.
    pub reloads: u8,
    pub told: Told,
}

/// What a gate was told, kept beside the holder to judge it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Told {
    pub seq: u64,
    pub keep: u32,
    pub contended: bool,
    /// Something was heard since the latest call.
    pub is_heard: bool,
    pub contended_at: Millis,
    /// Turns since the latest call, by line.
    pub turns: Waiting,
    pub started: Waiting,
    /// Turns that were not used by the latest call; only a mutant cares.
    pub left_over: Waiting,
    /// It started a call out of turn.
    pub out_of_turn: bool,
    /// When the latest call was sent, and whether its answer is still waited for.
    pub sent: Millis,
    pub awaits: bool,
    /// The latest call that was answered.
    pub answered: u64,
    /// How long the latest answer took; only a mutant cares.
    pub delay: Millis,
}

/// What was really charged and drawn.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Truth {
    /// Batches of charges that have reached the ledger: gate, incarnation, number and line.
    pub batches: BTreeSet<(usize, u64, u64, usize)>,
    /// Their sum.
    pub counted: i64,
    /// Charged in all.
    pub charged: i64,
    /// Came back of what was lent to holders that were forgotten since, or that have started anew: they may have drawn it.
    pub inherited: u64,
    /// The latest that the ledger was told of what each gate drew, by incarnation. Who is forgotten tells once more what had
    /// no answer.
    pub draws: BTreeMap<usize, (u64, i64)>,
    /// Told of draws, in all.
    pub told: i64,
    /// Drawn beyond what the rate has brought since, over the window for which it is most; in units of 1/window.
    pub burst: u64,
    pub drawn_at: Millis,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Letter {
    Request(usize, Box<SyncRequest>),
    Reply(usize, SyncReply),
    Notice(usize, SyncReply),
    /// Only a mutant needs it: slots that the ledger still has to book.
    Booking(usize, u32),
}

impl World {
    pub fn new(scene: &Scene) -> Self {
        let gate = |index: usize| Arc::new(Gate::new(scene, index));
        Self {
            now: BEGIN,
            server: Server::new(scene),
            ledger: Arc::new(AccountLedger::default()),
            gates: (0..scene.gates.len()).map(gate).collect(),
            orphans: Vec::new(),
            letters: Vec::new(),
            left: scene.most,
            bound: scene.capacities.first().copied().unwrap_or(0),
            truth: Arc::new(Truth::default()),
            lease: scene.lease,
            forgotten_after: scene.lease.plus(scene.longest_request),
        }
    }

    /// Calls at the upstream.
    pub fn running(&self) -> usize {
        self.gates.iter().map(|gate| gate.running.len()).sum::<usize>() + self.orphans.len()
    }

    /// Whether a failover may be taken back, as far as is promised: every gate has been answered since.
    pub fn all_heard_since_failover(&self) -> bool {
        let Some((_, before)) = &self.server.before else { return false };
        self.gates.iter().enumerate().all(|(index, gate)| {
            let known = before.latest_number(&holder_id(index));
            gate.holder.is_none() || gate.told.answered > 0 && known < Some((gate.incarnation, gate.told.answered))
        })
    }

    pub fn send(&mut self, letter: Letter) {
        self.letters.push(Arc::new(letter));
    }
}

impl Server {
    fn new(scene: &Scene) -> Self {
        Self {
            run: 0,
            clock: EPOCH,
            is_unsteady: scene.most.jumps > 0 || scene.patience.is_some(),
            is_lossy: scene.can_forget(),
            is_empty: false,
            replica: None,
            before: None,
            may_come_back: scene.most.failbacks > 0,
            unheard: BTreeSet::new(),
            is_excused: false,
        }
    }
}

impl Gate {
    fn new(scene: &Scene, index: usize) -> Self {
        let mut gate = Self {
            holder: None,
            servers: Servers::default(),
            incarnation: 0,
            running: Vec::new(),
            waiting: [0; LINES],
            reloads: 0,
            told: Told::default(),
        };
        gate.start(scene, index);
        gate
    }

    /// Comes up as a new incarnation, which knows nothing of the one before.
    pub fn start(&mut self, scene: &Scene, index: usize) {
        self.incarnation += 1;
        let holder = Holder::new(&scene.replica(index, self.incarnation), scene.terms(self.reloads));
        self.holder = Some(match scene.on_demand {
            Some(idle_calls) => holder.on_demand(idle_calls),
            None => holder,
        });
        self.servers = Servers::default();
        self.told = Told::default();
    }

    pub fn running(&self) -> u32 {
        u32::try_from(self.running.len()).unwrap_or(u32::MAX)
    }

    pub fn demand(&self) -> Demand {
        Demand { running: self.running(), waiting: self.waiting.iter().map(|waiting| u32::from(*waiting)).sum() }
    }

    pub fn rows(&self, head: Tokens) -> Vec<Row> {
        let row = |(line, waiting): (usize, &u8)| Row {
            flow: flow_name(line),
            weight: 1,
            head,
            money: 0,
            waiting: u32::from(*waiting),
            waited: Millis::ZERO,
        };
        self.waiting.iter().enumerate().filter(|(_, waiting)| **waiting > 0).map(row).collect()
    }

    /// The next call to the ledger.
    pub fn ask(&mut self, scene: &Scene, head: Tokens, now: Millis) -> Option<SyncRequest> {
        let (demand, rows) = (self.demand(), self.rows(head));
        let mut request = self.holder.as_mut()?.ask(demand, rows, &Names, now);
        request.servers = self.servers.known(now);
        request.patience = scene.patience;
        let mut left_over = self.told.turns;
        left_over.iter_mut().zip(self.told.started).for_each(|(turns, started)| *turns -= started);
        self.told = Told {
            left_over,
            seq: request.seq,
            keep: request.keep,
            turns: [0; LINES],
            started: [0; LINES],
            sent: now,
            awaits: true,
            is_heard: false,
            ..self.told
        };
        Some(request)
    }
}

impl Told {
    /// Hears what was written to it, whatever the holder makes of it.
    pub fn hear(&mut self, reply: &SyncReply) {
        for (line, turns) in self.turns.iter_mut().enumerate() {
            let given = reply.picks.get(&flow_name(line)).copied().unwrap_or(0);
            *turns = (*turns).max(u8::try_from(given).unwrap_or(u8::MAX));
        }
        if !std::mem::replace(&mut self.is_heard, true) || reply.now >= self.contended_at {
            self.contended_at = reply.now;
            self.contended = reply.contended;
        }
    }

    /// Starts a call of a line.
    pub fn start(&mut self, line: usize) {
        let turns = self.turns.get(line).copied().unwrap_or(0);
        let Some(started) = self.started.get_mut(line) else { return };
        if *started < turns {
            *started += 1;
        } else if self.contended {
            self.out_of_turn = true;
        }
    }
}

/// Whether a call to the ledger ended what it knew of a holder, or of its last incarnation.
pub fn is_gone(holder: &HolderId, before: &AccountLedger, after: &AccountLedger) -> bool {
    let incarnation = |ledger: &AccountLedger| ledger.latest_number(holder).map(|(incarnation, _)| incarnation);
    incarnation(before).is_some() && incarnation(before) != incarnation(after)
}
