//! What happens in a random run. A step names calls by how many are live, so any part of a run is a run again and a
//! failing one can be shortened.

use crate::chance::Chance;
use crate::setup::{GROUPS, Setup};
use crate::world::Ask;
use sluice_policy::units::Tokens;
use sluice_policy::wire::{Outcome, Usage, UsageSource};

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Ask(Ask),
    /// The id of a live call, or of one whose end was told twice, is asked for again.
    AskAgain {
        nth: usize,
        ask: Ask,
    },
    Settle {
        nth: usize,
        outcome: Outcome,
        usage: Used,
    },
    SettleAgain {
        nth: usize,
        outcome: Outcome,
    },
    /// The end of the next call overtakes its beginning.
    SettleNext,
    Wait {
        span: u64,
    },
    /// Until the core has something to do by time alone.
    WaitForWake,
    Ledger {
        answers: bool,
    },
    Apply {
        seed: u64,
    },
    Weigh {
        seed: u64,
    },
    Configure {
        seed: u64,
    },
    Drain,
}

/// What a call really used, in percent of its reservation.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Used {
    Nothing,
    Percent { input: u64, output: u64, cached: u64 },
}

impl Used {
    pub(crate) fn of(self, ask: &Ask) -> Usage {
        match self {
            Used::Nothing => Usage::default(),
            Used::Percent { input, output, cached } => {
                let input = ask.input * input / 100;
                let output = ask.max.unwrap_or(256) * u64::from(ask.sequences) * output / 100;
                let cached = Tokens(input * cached / 100);
                Usage {
                    source: UsageSource::Reported,
                    input: Tokens(input),
                    output: Tokens(output),
                    cached,
                    reasoning: Tokens::ZERO,
                }
            }
        }
    }
}

/// How likely what is, beside 100 requests.
struct Mood {
    settle: u64,
    wait: u64,
    longest_wait: u64,
    trouble: u64,
    change: u64,
}

type Maker<'a> = &'a dyn Fn(&mut Chance) -> Step;

impl Step {
    pub(crate) fn run(chance: &mut Chance, setup: &Setup, length: usize) -> Vec<Step> {
        let mood = Mood {
            settle: chance.between(40, 120),
            wait: chance.between(10, 80),
            longest_wait: chance.size(20, 4_000),
            trouble: chance.pick(&[0, 0, 0, 2]),
            change: chance.pick(&[0, 0, 1, 5]),
        };
        let mut steps: Vec<Step> = (0..length).map(|_| Step::random(chance, setup, &mood)).collect();
        if chance.percent(10) {
            steps.push(Step::Drain);
            steps.extend((0..5).map(|_| Step::Ask(random_ask(chance, setup))));
        }
        steps
    }

    fn random(chance: &mut Chance, setup: &Setup, mood: &Mood) -> Step {
        let seed = chance.next();
        let nth = chance.index(1_000);
        let outcomes = [Outcome::Completed, Outcome::Completed, Outcome::Failed, Outcome::Aborted, Outcome::Cancelled];
        let outcome = chance.pick(&outcomes);
        let weighted: [(u64, Maker<'_>); 11] = [
            (100, &|chance| Step::Ask(random_ask(chance, setup))),
            (mood.settle, &|chance| Step::Settle { nth, outcome, usage: random_use(chance) }),
            (mood.wait, &|chance| Step::Wait { span: chance.size(1, mood.longest_wait) }),
            (5, &|_| Step::WaitForWake),
            (3, &|chance| Step::AskAgain { nth, ask: random_ask(chance, setup) }),
            (5, &|_| Step::SettleAgain { nth, outcome }),
            (1, &|_| Step::SettleNext),
            (mood.trouble, &|chance| Step::Ledger { answers: chance.percent(70) }),
            (mood.change, &|_| Step::Apply { seed }),
            (mood.change, &|_| Step::Weigh { seed }),
            (mood.change, &|_| Step::Configure { seed }),
        ];
        let mut left = chance.between(1, weighted.iter().map(|(weight, _)| weight).sum());
        for (weight, step) in weighted {
            if left <= weight {
                return step(chance);
            }
            left -= weight;
        }
        Step::WaitForWake
    }
}

fn random_ask(chance: &mut Chance, setup: &Setup) -> Ask {
    // The first tenants call most.
    let tenants = if chance.percent(50) { setup.tenants.len().min(3) } else { setup.tenants.len() };
    Ask {
        tenant: chance.index(tenants),
        pool: if chance.percent(2) { setup.pools.len() } else { chance.index(setup.pools.len()) },
        level: chance.percent(50).then(|| chance.between(0, 9) as u8),
        granted: chance.percent(10).then(|| chance.between(0, 9) as u8),
        input: chance.size(1, 2_000),
        max: chance.percent(80).then(|| chance.size(1, 4_000)),
        sequences: if chance.percent(85) { 1 } else { chance.between(2, 4) as u32 },
        bytes: chance.size(10, 800),
        deadline: chance.percent(8).then(|| chance.size(1, 20_000)),
    }
}

fn random_use(chance: &mut Chance) -> Used {
    if chance.percent(15) {
        return Used::Nothing;
    }
    let around = |chance: &mut Chance| if chance.percent(30) { 100 } else { chance.size(1, 300) };
    // Now and then beyond what the context allows.
    let output = if chance.percent(3) { 1_000_000 } else { around(chance) };
    Used::Percent { input: around(chance), output, cached: chance.between(0, 100) }
}

/// A reload: any section may differ. Groups stay: their indices are their places in the list.
pub(crate) fn reloaded(setup: &Setup, seed: u64) -> Setup {
    let (mut chance, mut setup) = (Chance::seeded(seed), setup.clone());
    if chance.percent(50) {
        setup.change_queue(&mut chance);
    }
    for _ in 0..chance.index(3) {
        setup.change_tenant(&mut chance);
    }
    if chance.percent(50) {
        setup.change_effective(&mut chance);
        let pool = chance.index(setup.pools.len());
        setup.pools[pool].requests_per_s = chance.percent(20).then(|| chance.size(2, 50));
        setup.pools[pool].context = chance.percent(50).then_some(4_000);
        setup.pools[pool].percent[1] = chance.between(50, 400);
    }
    debug_assert!(setup.groups <= GROUPS.len());
    setup
}

pub(crate) fn applied(setup: &Setup, seed: u64) -> Setup {
    let mut setup = setup.clone();
    setup.change_effective(&mut Chance::seeded(seed));
    setup
}
