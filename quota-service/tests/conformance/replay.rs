//! Random calls of several holders to one account: duplicates, late ones, restarts, clocks that jump, servers that forget
//! or are others than before. What the function answers decides what is called next.

use super::homes::{Call, Home, Pure, Redis};
use sluice_policy::bucket::Rate;
use sluice_policy::ledger::{
    Account, FlowName, Limit, Loss, MOST_ROWS, MeterName, MeterReport, Row, Sighting, Spent, SyncReply, SyncRequest,
    Synced, Terms, Version,
};
use sluice_policy::queue::SharePolicy;
use sluice_policy::units::{HolderId, Millis, Priority, Tokens};
use std::collections::BTreeMap;

/// So many calls are sent before their answers are looked at.
const PIPELINED: usize = 250;
const HOUR: i64 = 3_600_000;

/// What happens to an account, and what the function makes of it.
pub(crate) struct Trace {
    account: Account,
    steps: Vec<Step>,
    spent: i64,
}

enum Step {
    Lose,
    Call(Box<Called>),
}

struct Called {
    request: SyncRequest,
    arguments: Vec<String>,
    expected: Synced,
}

impl Trace {
    pub(crate) fn random(seed: u64, calls: usize) -> Self {
        let account = Account::Pool(format!("trace-{seed}").into());
        let mut world = World::new(seed);
        let mut pure = Pure::default();
        let mut steps = Vec::new();
        while steps.len() < calls {
            if world.dice.one_in(1_000) {
                pure.lose(&account);
                steps.push(Step::Lose);
            }
            let Some(call) = world.next_call() else { continue };
            let expected = pure.sync(&account, std::slice::from_ref(&call)).remove(0);
            world.heard(&call.request, &expected);
            let arguments = call.arguments();
            steps.push(Step::Call(Box::new(Called { request: call.request, arguments, expected })));
        }
        let spent = pure.accounts.get(&account).unwrap().spent();
        Self { account, steps, spent }
    }

    /// What was called, one after the other.
    pub(crate) fn requests(&self) -> Vec<SyncRequest> {
        let calls = self.steps.iter().filter_map(|step| match step {
            Step::Call(called) => Some(called.request.clone()),
            Step::Lose => None,
        });
        calls.collect()
    }

    /// Panics at the first difference.
    pub(crate) fn replay(&self, home: &mut Redis) {
        let lost = |step: &Step| matches!(step, Step::Lose);
        for (times, steps) in self.steps.split(lost).enumerate() {
            if times > 0 {
                home.lose(&self.account);
            }
            for batch in steps.chunks(PIPELINED) {
                self.check(home, batch);
            }
        }
        assert_eq!(home.field(&self.account, "spent"), Some(self.spent.to_string()));
    }

    fn check(&self, home: &mut Redis, batch: &[Step]) {
        let calls = batch.iter().filter_map(|step| match step {
            Step::Call(called) => Some(called),
            Step::Lose => None,
        });
        let arguments: Vec<&[String]> = calls.clone().map(|called| called.arguments.as_slice()).collect();
        for (called, answer) in calls.zip(home.sync_encoded(&self.account, &arguments)) {
            assert_eq!(answer, called.expected, "{} was asked {:?}", self.account, called.request);
        }
    }
}

/// Splitmix64: small, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap()].clone()
    }
}

struct World {
    dice: Dice,
    holders: Vec<Teller>,
    terms: Terms,
    /// Sent and not delivered yet, or delivered and likely to come again.
    late: Vec<SyncRequest>,
    /// As it passes.
    time: u64,
    /// What the server's clock is wrong by.
    wrong: i64,
    run: u64,
    /// Charges are so large that counters are rebased.
    is_huge: bool,
}

/// A holder, as far as it must make sense.
struct Teller {
    id: HolderId,
    incarnation: u64,
    seq: u64,
    terms: Terms,
    granted: u32,
    unacknowledged: Vec<Spent>,
    drawn: BTreeMap<MeterName, i64>,
    last_heard: Option<(Millis, u64)>,
    lease: Millis,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let is_huge = seed % 8 == 7;
        let terms = Terms {
            version: Version::default(),
            capacity: 1 + u32::try_from(dice.below(12)).unwrap(),
            policy: dice.of(&[SharePolicy::Strict, SharePolicy::Wfq, SharePolicy::Hybrid]),
            levels: if is_huge { [1; Priority::COUNT] } else { [256, 128, 64, 32, 16, 8, 4, 2, 1, 1] },
            groups: BTreeMap::from([("red".into(), 3)]),
            meters: BTreeMap::new(),
        };
        let holders = 1 + dice.below(5);
        let teller = |index| Teller {
            // Byte order and the order of a dictionary are not the same.
            id: ["gate-a", "gate-B", "gate_c", "Gate-d", "gate.e"][usize::try_from(index).unwrap()].into(),
            incarnation: 1_790_000_000_000,
            seq: 0,
            terms: terms.clone(),
            granted: 0,
            unacknowledged: Vec::new(),
            drawn: BTreeMap::new(),
            last_heard: None,
            lease: Millis([500, 2_000][usize::try_from(index % 2).unwrap()]),
        };
        let holders = (0..holders).map(teller).collect();
        let time = 1_790_000_000_000;
        Self { dice, holders, terms, late: Vec::new(), time, wrong: 0, run: 0, is_huge }
    }

    /// Time passes, and somebody's call arrives.
    fn next_call(&mut self) -> Option<Call> {
        self.pass_time();
        if self.dice.one_in(50) {
            self.change_terms();
        }
        let request = if self.dice.one_in(10) && !self.late.is_empty() {
            self.dice.of(&self.late)
        } else {
            let request = self.make_call();
            self.late.push(request.clone());
            if self.late.len() > 8 {
                self.late.remove(0);
            }
            if self.dice.one_in(20) {
                return None;
            }
            request
        };
        let now = Millis(self.time.saturating_add_signed(self.wrong));
        Some(Call { request, run: format!("run{}", self.run), now })
    }

    fn pass_time(&mut self) {
        self.time += self.dice.of(&[0, 0, 1, 5, 20, 100]);
        self.time += match self.dice.below(400) {
            0 => 61_000,
            1..4 => 5_500,
            4..14 => 2_100,
            14..30 => 300,
            _ => 0,
        };
        if self.dice.one_in(400) {
            self.wrong = self.dice.of(&[0, HOUR, -HOUR, 1_900]);
        }
        if self.dice.one_in(300) {
            self.run += 1;
        }
    }

    fn change_terms(&mut self) {
        let dice = &mut self.dice;
        match dice.below(8) {
            0 => self.terms.version.file += 1,
            1 => self.terms.version.overlay += 1,
            2 => self.terms.version = Version { file: self.terms.version.file + 1, ..Version::default() },
            _ => self.terms.version.since += 1,
        }
        match dice.below(6) {
            0 => self.terms.policy = dice.of(&[SharePolicy::Strict, SharePolicy::Wfq, SharePolicy::Hybrid]),
            1 => _ = self.terms.groups.insert(dice.of(&["red", "blue"]).into(), 1 + dice.below(5)),
            2 => self.terms.levels[usize::try_from(dice.below(10)).unwrap()] = 1 + dice.below(300),
            3 | 4 => self.change_meter(),
            _ if dice.one_in(8) => self.terms.capacity = Terms::UNCOUNTED,
            _ => self.terms.capacity = u32::try_from(dice.below(16)).unwrap(),
        }
    }

    fn change_meter(&mut self) {
        let dice = &mut self.dice;
        let name = dice.of(&MeterName::ALL);
        let amount = dice.of(&[1, 7, 60, 1_000, 100_000, 10_000_000_000]);
        let limit = match name {
            MeterName::TokensPerDay | MeterName::TokensPerMonth | MeterName::MoneyPerDay | MeterName::MoneyPerMonth => {
                Limit::Budget { amount: amount * 10, period: 20_260_100 + dice.below(4) }
            }
            MeterName::RequestsPerSecond | MeterName::TokensPerSecond => {
                Limit::Rate(Rate::per_second(amount, 1 + dice.below(amount * 2)))
            }
            MeterName::RequestsPerMinute | MeterName::TokensPerMinute => Limit::Rate(Rate::per_minute(amount)),
        };
        if dice.one_in(2) {
            self.terms.meters.remove(&name);
        } else {
            self.terms.meters.insert(name, limit);
        }
    }

    fn make_call(&mut self) -> SyncRequest {
        let servers = self.known_servers();
        let (dice, is_huge) = (&mut self.dice, self.is_huge);
        let index = usize::try_from(dice.below(self.holders.len() as u64)).unwrap();
        let teller = &mut self.holders[index];
        if dice.one_in(60) {
            teller.restart();
        }
        if dice.one_in(3) {
            teller.terms = self.terms.clone();
        }
        teller.seq += 1;
        for _ in 0..dice.of(&[0, 0, 1, 2]) {
            let spent =
                Spent { seq: teller.seq, flow: flow(dice), weight: 1 + dice.below(3), charge: charge(dice, is_huge) };
            teller.unacknowledged.push(spent);
        }
        let rows = if dice.one_in(100) { MOST_ROWS as u64 } else { dice.of(&[0, 0, 1, 2, 5]) };
        // A holder does not name a flow twice.
        let rows: BTreeMap<FlowName, Row> =
            (0..rows).map(|_| row(dice, is_huge)).map(|row| (row.flow.clone(), row)).collect();
        let most = u64::from(teller.granted) + 1 + u64::from(dice.one_in(10)) * 3;
        SyncRequest {
            holder: teller.id.clone(),
            incarnation: teller.incarnation,
            seq: teller.seq,
            keep: u32::try_from(dice.below(most)).unwrap(),
            want: dice.of(&[0, 0, 1, 3, 20]),
            terms: teller.terms.clone(),
            lease: teller.lease,
            longest_request: Millis(dice.of(&[5_000, 5_000, 1_000, 20_000])),
            last_heard: teller.last_heard.map(|(ledger, at)| (ledger, Millis(self.time - at))),
            wall: dice.of(&[None, Some(0), Some(0), Some(60_000)]).map(|wrong| Millis(self.time + wrong)),
            answered: dice.of(&[None, Some(1), Some(2), Some(3)]).map(|before| teller.seq.saturating_sub(before)),
            guarded: dice.one_in(2),
            ahead: !dice.one_in(4),
            spent: teller.unacknowledged.clone(),
            servers,
            patience: dice.of(&[None, Some(500), Some(2_000)]).map(Millis),
            jump: dice.of(&[None, None, Some(300), Some(3_600_000)]).map(Millis),
            rows: rows.into_values().collect(),
            meters: teller.report(dice),
        }
    }

    /// What a replica may know of the server that answers, and of others.
    fn known_servers(&mut self) -> Vec<Sighting> {
        let dice = &mut self.dice;
        let runs = [self.run, self.run.saturating_sub(1)].into_iter().filter(|_| dice.one_in(2)).collect::<Vec<_>>();
        let sighting = |run| Sighting {
            run: format!("run{run}"),
            ago: Millis(dice.of(&[0, 10, 1_500, 3_000, 100_000])),
            lost: dice.of(&[Loss::None, Loss::Latest, Loss::Latest, Loss::All]),
        };
        runs.into_iter().map(sighting).collect()
    }

    fn heard(&mut self, request: &SyncRequest, answer: &Synced) {
        for (holder, reply) in answer.notices.iter().chain([(&request.holder, &answer.reply)]) {
            let is_lost = self.dice.one_in(20);
            if let Some(teller) = self.holders.iter_mut().find(|teller| teller.id == *holder && !is_lost) {
                teller.hear(reply, self.time, holder == &request.holder);
            }
        }
    }
}

impl Teller {
    fn restart(&mut self) {
        self.incarnation += 1;
        self.seq = 0;
        self.granted = 0;
        self.unacknowledged.clear();
        self.drawn.clear();
        self.last_heard = None;
    }

    fn hear(&mut self, reply: &SyncReply, time: u64, is_answer: bool) {
        if reply.late || (reply.incarnation, reply.seq) != (self.incarnation, self.seq) {
            return;
        }
        self.granted = reply.granted;
        if is_answer {
            self.last_heard = Some((reply.now, time));
            self.unacknowledged.clear();
        }
    }

    fn report(&mut self, dice: &mut Dice) -> BTreeMap<MeterName, MeterReport> {
        let mut reports = BTreeMap::new();
        for (name, limit) in &self.terms.meters {
            let drawn = self.drawn.entry(*name).or_default();
            *drawn += dice.of(&[0, 0, 1, 10, 500, -3]);
            let period = match limit {
                Limit::Rate(_) => 0,
                Limit::Budget { period, .. } => *period - u64::from(dice.one_in(10)),
            };
            let counted = dice.of(&[0, *drawn, *drawn - 10]);
            let keep = dice.of(&[0, 1, 100, 1_000_000]);
            reports.insert(*name, MeterReport { drawn: *drawn, counted, keep, period });
        }
        reports
    }
}

fn flow(dice: &mut Dice) -> FlowName {
    let level = dice.of(&["0", "1", "1", "2", "5", "9"]);
    let tenant = dice.of(&["acme", "Acme", "acme-2", "beta", "zeta", "a_b", "a.b", "0"]);
    format!("{}/{level}/{tenant}", dice.of(&["", "", "red", "Red", "blue"])).parse().unwrap()
}

fn charge(dice: &mut Dice, is_huge: bool) -> i64 {
    if is_huge { dice.of(&[1 << 30, 1 << 31, -1]) } else { dice.of(&[0, 1, 100, 5_000, 1_000_000, -1, -5_000]) }
}

fn row(dice: &mut Dice, is_huge: bool) -> Row {
    Row {
        flow: flow(dice),
        weight: 1 + dice.below(3),
        head: Tokens(if is_huge { 1 << 30 } else { dice.of(&[0, 1, 50, 900, 200_000]) }),
        money: dice.of(&[0, 0, 7, 400, 1_000_000]),
        waiting: dice.of(&[1, 1, 2, 9]),
        waited: Millis(dice.of(&[0, 3, 100, 60_000])),
    }
}
