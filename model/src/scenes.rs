//! The configurations that are searched, and those in which each mutant must be found.

use crate::mutant::Mutant;
use crate::scene::{FOR_EVER, Most, Scene, Waiting};
use sluice_policy::bucket::Rate;
use sluice_policy::ledger::{Limit, MeterName};
use sluice_policy::units::{Millis, Tokens};
use std::collections::BTreeMap;

const P0: Waiting = [1, 0];
const P1: Waiting = [0, 1];

/// What the protocol must survive, each searched to its end.
pub fn all() -> Vec<Scene> {
    vec![
        one("one gate", &[P1]).starting_cold().patient(),
        one("for ever", &[P1, P1]),
        one("cold start", &[P1, P1]).starting_cold().patient().within(4, 2),
        one("patience", &[P1, P1]).patient().within(3, 2),
        one("priority", &[P0, P1]).within(2, 3),
        one("lingering", &[P1, P1]).lingering(1).within(3, 2),
        one("crash", &[P1, P1]).within(4, 2).with(|most| most.crashes = 1),
        one("loss", &[P1, P1]).within(4, 2).with(|most| most.flushes = 1),
        one("clock", &[P1, P1]).within(3, 1).with(|most| (most.jumps, most.crashes) = (1, 1)),
        three("three gates").within(2, 2),
        three("three in turn").on_demand().within(1, 3),
        three("three copies").on_demand().within(2, 2).with_stragglers().with(|most| most.copies = 1),
        three("three crash").on_demand().within(3, 2).with(|most| most.crashes = 1),
        three("three failover").on_demand().within(2, 2).with(|most| {
            (most.crashes, most.failovers, most.catch_ups) = (1, 1, FOR_EVER);
        }),
        three("three sizes").on_demand().within(1, 2).with_capacities(&[3, 1, 3]),
        charges("charges").within(1, 2),
        budget("budget", 6).within(2, 4),
        budget("budget crash", 6).within(1, 4).with(|most| most.crashes = 1),
        rate("rate").within(2, 4),
        alone("alone").with_calls_of(600).within(3, 3).with(|most| most.flushes = 1),
        one("recovery", &[P1, P1]).with_calls_of(400).within(1, 2).failing_over().progressing(3),
        one("left", &[P1, P1]).on_demand().with_calls_of(200).within(1, 2).failing_over().hearing(),
        one("failover", &[P1, P1]).on_demand().with_calls_of(200).within(3, 2).failing_over().hearing().with(|most| {
            most.crashes = 1;
        }),
        one("failback", &[P1, P1])
            .on_demand()
            .with_calls_of(400)
            .within(1, 2)
            .failing_over()
            .with(|most| most.failbacks = 1),
        one("late", &[P1, P1]).impatient().within(3, 2),
        one("late clock", &[P1, P1]).impatient().within(2, 1).with(|most| (most.jumps, most.crashes) = (1, 1)),
        one("loss heard", &[P1, P1]).with_calls_of(200).within(3, 2).hearing().with(|most| most.flushes = 1),
    ]
}

/// Gates with one slot among them.
fn one(name: &'static str, gates: &[Waiting]) -> Scene {
    Scene::calm(name, 1).with_gates(gates)
}

/// One gate, which nobody can hold up.
fn alone(name: &'static str) -> Scene {
    one(name, &[P1]).progressing(3)
}

fn three(name: &'static str) -> Scene {
    Scene::calm(name, 3).with_gates(&[P1, P1, P1])
}

fn charges(name: &'static str) -> Scene {
    let scene = Scene::calm(name, 2).with_gates(&[P1, P1]).with_stragglers();
    scene.with(|most| (most.charges, most.copies, most.crashes) = (2, 1, 1))
}

/// A budget, in calls of 2 tokens.
fn budget(name: &'static str, amount: u64) -> Scene {
    metered(name, MeterName::TokensPerDay, Limit::Budget { amount, period: 1 })
}

/// Calls of 2 tokens, of which 2 come in with each step, and 4 at once.
fn rate(name: &'static str) -> Scene {
    metered(name, MeterName::TokensPerSecond, Limit::Rate(Rate { amount: 2, window: Millis(100), burst: 4 }))
}

fn metered(name: &'static str, meter: MeterName, limit: Limit) -> Scene {
    let scene = Scene::calm(name, 2).with_gates(&[P1, P1]).on_demand().with(|most| most.charges = FOR_EVER);
    Scene { meters: BTreeMap::from([(meter, limit)]), charge: Tokens(2), ..scene }
}

/// Where a mutant must be found.
pub fn habitat(mutant: Mutant) -> Scene {
    let name = mutant.name();
    let two = || one(name, &[P1, P1]).within(2, 2);
    let scene = match mutant {
        Mutant::ExpiredLeaseReclaimed => two().with_calls_of(200).within(3, 2),
        Mutant::FirstAnswerByMax | Mutant::KeepNotClamped | Mutant::ShrunkWithoutWord | Mutant::ContendedIgnored => {
            two()
        }
        Mutant::HoldNotLowered => two().patient(),
        Mutant::LeaseFromReceiving => two().within(3, 2),
        Mutant::NoticeBeforeRaise => one(name, &[P1, P1, P1]).within(0, 3),
        Mutant::NoticeIncremental => {
            Scene::calm(name, 3).with_gates(&[[0, 2], P1]).within(0, 4).with(|most| most.copies = 1)
        }
        Mutant::PicksKept => one(name, &[[1, 1], P1]).within(0, 4).with(|most| most.leaves = 1),
        Mutant::StaleAnswerAccepted => Scene { stale_answers: true, ..two() },
        Mutant::NumbersIgnored => two().with_stragglers(),
        Mutant::IncarnationForgotten => two().with(|most| most.crashes = 1),
        Mutant::FreezeOfOneLease => {
            two().with_calls_of(200).within(1, 2).with(|most| (most.crashes, most.failovers) = (1, 1))
        }
        Mutant::ChargedAgain => two().with(|most| most.charges = 1),
        Mutant::DrawnAgain => budget(name, 8).within(2, 5),
        Mutant::LentNotDebited => budget(name, 2).within(1, 4),
        Mutant::InheritedTwice => budget(name, 6).within(1, 4).with(|most| most.crashes = 1),
        Mutant::ClockTrusted => two().with(|most| most.jumps = 1),
        Mutant::RetryGivesBack => alone(name).with_calls_of(600).within(3, 3).with(|most| most.flushes = 1),
        Mutant::FreezeAlwaysLong => two().with_calls_of(600).failing_over().progressing(3),
        Mutant::LeaverAwaited => two().on_demand().with_calls_of(600).failing_over().progressing(3),
        Mutant::SilentNotAwaited | Mutant::IncarnationHeard => {
            two().with_calls_of(200).within(1, 2).with(|most| (most.crashes, most.failovers) = (1, 1))
        }
        Mutant::ComebackTrusted => {
            two().with_calls_of(400).within(1, 2).with(|most| (most.failovers, most.failbacks) = (1, 1))
        }
        Mutant::MissingTrusted => two().with_calls_of(400).within(3, 2).with(|most| most.flushes = 1),
    };
    Scene { mutant: Some(mutant), ..scene }
}

impl Scene {
    fn with_gates(self, gates: &[Waiting]) -> Self {
        Self { gates: gates.to_vec(), ..self }
    }

    /// Upsets, beside what it bounds already.
    fn with(mut self, upsets: impl FnOnce(&mut Most)) -> Self {
        upsets(&mut self.most);
        self
    }

    fn within(self, passes: u8, arrivals: u8) -> Self {
        Self { most: Most { passes, arrivals, ..self.most }, ..self }
    }

    /// A replica takes over that may lag behind, or not.
    fn failing_over(self) -> Self {
        self.with(|most| (most.failovers, most.catch_ups) = (1, FOR_EVER))
    }

    /// A call that arrives two steps after it was sent is late.
    fn impatient(self) -> Self {
        Self { patience: Some(Millis(50)), ..self }
    }

    /// Gates hear of another server by their other accounts, too.
    fn hearing(self) -> Self {
        Self { hears: true, ..self }
    }

    /// All slots are in use in so many steps once nothing more goes wrong.
    fn progressing(self, steps: u8) -> Self {
        Self { progress: Some(steps), ..self }
    }

    fn starting_cold(self) -> Self {
        Self { settled: false, ..self }
    }

    fn with_capacities(self, capacities: &[u32]) -> Self {
        Self { capacities: capacities.to_vec(), ..self }
    }

    /// Calls overtake each other.
    fn with_stragglers(self) -> Self {
        Self { stragglers: 1, ..self }
    }

    /// Leases that outlast the next step, and calls that do.
    fn patient(self) -> Self {
        Self { lease: Millis(200), longest_request: Millis(200), ..self }
    }

    fn with_calls_of(self, longest_ms: u64) -> Self {
        Self { longest_request: Millis(longest_ms), ..self }
    }

    /// Whoever needs an account no more keeps it for so many calls.
    fn lingering(self, calls: u8) -> Self {
        Self { on_demand: Some(calls), ..self }
    }

    fn on_demand(self) -> Self {
        self.lingering(0)
    }
}
