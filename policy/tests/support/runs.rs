//! Random runs of the whole core beside the naive model, checked after every event.

use crate::chance::Chance;
use crate::model::{Model, State};
use crate::setup::Setup;
use crate::steps::{Step, applied, reloaded};
use crate::world::{Ask, World};
use sluice_policy::admission::Decision;
use sluice_policy::units::{Millis, TenantId};
use sluice_policy::wire::{Outcome, Usage, UsageSource};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

const EVENTS: usize = 1_000;
const RUNS: u64 = 1_000;

struct Run {
    world: World,
    model: Model,
    /// How each call was made, by its number.
    asks: Vec<Ask>,
}

impl Run {
    fn of(setup: &Setup, steps: &[Step]) -> Result<Run, String> {
        let mut run = Run { world: World::new(setup), model: Model::new(setup), asks: Vec::new() };
        for (at, step) in steps.iter().enumerate() {
            run.take(step).map_err(|problem| format!("step {at}, {step:?}: {problem}"))?;
            run.turn(at % 16 == 0)?;
        }
        run.finish().map_err(|problem| format!("at the end: {problem}"))?;
        Ok(run)
    }

    fn take(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Ask(ask) => {
                self.asks.push(ask.clone());
                self.ask(self.asks.len() - 1, ask)
            }
            Step::AskAgain { nth, ask } => {
                let known = (0..self.asks.len()).filter(|number| self.model.knows(*number, self.world.now));
                let known: Vec<usize> = known.collect();
                if known.is_empty() { Ok(()) } else { self.ask(known[nth % known.len()], ask) }
            }
            Step::Settle { nth, outcome, usage } => {
                // Mostly a call that runs, now and then one that waits.
                let running: Vec<usize> = self.model.running().map(|call| call.number).collect();
                let waiting: Vec<usize> = self.model.waiting().map(|call| call.number).collect();
                let from = if running.is_empty() || nth % 5 == 0 { waiting } else { running };
                let Some(number) = from.get(nth % from.len().max(1)).copied() else { return Ok(()) };
                let usage = usage.of(&self.asks[number]);
                self.settle(number, *outcome, usage)
            }
            Step::SettleAgain { nth, outcome } => {
                let Some(call) = self.model.past.get(nth % self.model.past.len().max(1)) else { return Ok(()) };
                self.settle(call.number, *outcome, Usage { source: UsageSource::Reported, ..Usage::default() })
            }
            Step::SettleNext => self.settle(self.asks.len(), Outcome::Cancelled, Usage::default()),
            Step::Wait { span } => {
                self.world.now += span;
                Ok(())
            }
            Step::WaitForWake => self.wait_for_wake(),
            Step::Ledger { answers } => {
                self.world.ledger_answers = *answers;
                Ok(())
            }
            Step::Apply { seed } => {
                let setup = applied(&self.model.setup, *seed);
                self.world.apply(&setup);
                self.model.apply(&setup, self.world.now);
                Ok(())
            }
            Step::Weigh { seed } => {
                self.weigh(*seed);
                Ok(())
            }
            Step::Configure { seed } => {
                let setup = reloaded(&self.model.setup, *seed);
                self.world.configure(&setup);
                self.model.configure(&setup, self.world.now);
                Ok(())
            }
            Step::Drain => {
                let events = self.world.core.drain(Millis(self.world.now));
                self.model.drained(&events, self.world.now)
            }
        }
    }

    /// Until somebody's time has come, or for some ticks of the ledger.
    fn wait_for_wake(&mut self) -> Result<(), String> {
        for _ in 0..20 {
            let Some(wake) = self.world.next_wake() else { break };
            if wake.0 <= self.world.now {
                return Err(format!("it should have woken at {wake:?}"));
            }
            self.world.now = wake.0;
            if self.world.core.next_wake().is_some_and(|wake| wake.0 <= self.world.now) {
                break;
            }
            self.turn(false)?;
        }
        Ok(())
    }

    fn ask(&mut self, number: usize, ask: &Ask) -> Result<(), String> {
        let decision = self.world.ask(number, ask);
        self.model.asked(number, ask, &decision, &self.world)?;
        self.world.before_newcomer.clear();
        if self.world.has_applied && matches!(decision, Decision::Rejected(_)) {
            // It was live for a moment, other than a call that is refused on arrival.
            self.model.bury(number, self.world.now);
        }
        Ok(())
    }

    fn settle(&mut self, number: usize, outcome: Outcome, usage: Usage) -> Result<(), String> {
        let settled = self.world.settle(number, outcome, usage);
        self.model.settled(number, outcome, usage, settled.as_ref(), self.world.now)
    }

    fn weigh(&mut self, seed: u64) {
        let mut chance = Chance::seeded(seed);
        let tenants = self.model.setup.tenants.iter();
        let given: Vec<Option<u64>> = tenants.map(|_| chance.percent(50).then(|| chance.between(1, 9))).collect();
        let named = self.world.tenants.iter().cloned().zip(&given);
        let weights: BTreeMap<TenantId, u64> = named.filter_map(|(id, weight)| Some((id, (*weight)?))).collect();
        self.world.core.weigh_tenants(Arc::new(weights));
        let configured = self.model.setup.tenants.iter().map(|tenant| if tenant.absent { 1 } else { tenant.weight });
        self.model.weigh(configured.zip(given).map(|(configured, given)| given.unwrap_or(configured)).collect());
    }

    fn turn(&mut self, thorough: bool) -> Result<(), String> {
        let events = self.world.turn();
        self.model.turned(&events, &self.world)?;
        self.model.check(&mut self.world, thorough)?;
        let mut latest = self.model.live.iter().rev().take(3).chain(self.model.past.iter().rev().take(3));
        latest.try_for_each(|call| self.model.check_explained(&self.world, call))
    }

    /// Lets everybody finish; then everything that was lent has come back, and every call has ended once.
    fn finish(&mut self) -> Result<(), String> {
        self.world.ledger_answers = true;
        for _ in 0..10_000 {
            if self.world.core.is_idle() {
                break;
            }
            let running: Vec<usize> = self.model.running().map(|call| call.number).collect();
            for number in running {
                self.settle(number, Outcome::Failed, Usage { source: UsageSource::Reported, ..Usage::default() })?;
            }
            self.turn(false)?;
            // A second at most, as an engine that renews leases sleeps at most.
            let wake = self.world.next_wake().map_or(0, |wake| wake.0);
            self.world.now = wake.clamp(self.world.now + 1, self.world.now + 1_000);
        }
        if !self.world.core.is_idle() || !self.model.live.is_empty() {
            return Err(format!("{} never ended", self.model.live.len()));
        }
        for call in &self.model.past {
            let told_again = matches!(call.state, State::Refused(_)) && self.knows_again(call.number);
            if !told_again {
                self.model.check_explained(&self.world, call)?;
            }
        }
        // Thirty years pay for any debt here.
        self.world.now += 1_000_000_000_000;
        self.turn(true)?;
        let now = self.world.now;
        for pool in 0..self.world.pools.len() {
            let told = self.world.pool_tokens(pool);
            let expected = self.model.pool_tokens(pool, now);
            if told != expected && !self.world.has_failed {
                return Err(format!("the ledger knows of {told:?} tokens, not {expected:?}"));
            }
        }
        self.model.check_returned(now)
    }

    /// Whether a number was decided more than once: the last decision is what is explained.
    fn knows_again(&self, number: usize) -> bool {
        self.model.past.iter().filter(|call| call.number == number).count() > 1
    }
}

fn attempt(setup: &Setup, steps: &[Step]) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| Run::of(setup, steps).map(drop))).unwrap_or_else(|_| Err("it panicked".to_owned()))
}

/// Leaves out whatever the failure does not need.
fn shortened(setup: &Setup, steps: Vec<Step>) -> Vec<Step> {
    let (mut steps, mut chunk) = (steps, EVENTS);
    while chunk > 0 {
        let mut at = 0;
        while at < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(at..(at + chunk).min(steps.len()));
            if attempt(setup, &fewer).is_err() {
                steps = fewer;
            } else {
                at += chunk;
            }
        }
        chunk /= 2;
    }
    steps
}

fn run_seed(seed: u64) {
    let mut chance = Chance::seeded(seed);
    let setup = Setup::random(&mut chance);
    let steps = Step::run(&mut chance, &setup, EVENTS);
    if let Err(problem) = attempt(&setup, &steps) {
        let steps = shortened(&setup, steps);
        let left = attempt(&setup, &steps).err().unwrap_or_default();
        let steps: Vec<String> = steps.iter().map(|step| format!("{step:?}")).collect();
        panic!("run {seed}: {problem}\nshortened: {left}\n{setup:?}\n{}", steps.join("\n"));
    }
}

fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().map_or(otherwise, |text| text.parse().expect("a number of runs"))
}

/// One of four parts, so that they run side by side.
fn run_part(part: u64) {
    let first = from_environment("SLUICE_SOAK_SEED", 0);
    let runs = from_environment("SLUICE_SOAK_RUNS", RUNS);
    (first..first + runs).filter(|seed| seed % 4 == part).for_each(run_seed);
}

#[test]
fn in_random_runs_every_answer_is_one_that_the_naive_model_allows_part_1() {
    run_part(0);
}

#[test]
fn in_random_runs_every_answer_is_one_that_the_naive_model_allows_part_2() {
    run_part(1);
}

#[test]
fn in_random_runs_every_answer_is_one_that_the_naive_model_allows_part_3() {
    run_part(2);
}

#[test]
fn in_random_runs_every_answer_is_one_that_the_naive_model_allows_part_4() {
    run_part(3);
}

/// A model that is never put to the test would agree with anything.
#[test]
fn the_random_runs_meet_every_kind_of_fate_often() {
    let mut fates: BTreeMap<String, u32> = BTreeMap::new();
    for seed in 0..80 {
        let mut chance = Chance::seeded(seed);
        let setup = Setup::random(&mut chance);
        let steps = Step::run(&mut chance, &setup, EVENTS);
        let run = Run::of(&setup, &steps).unwrap();
        for call in &run.model.past {
            *fates.entry(format!("{:?}", call.state)).or_default() += 1;
            let waited = call.started.is_some_and(|since| since > call.arrived);
            *fates.entry(format!("waited: {waited}")).or_default() += 1;
        }
        *fates.entry("races".to_owned()).or_default() += run.model.races();
    }
    let expected = [
        "Ended(Completed)",
        "Ended(Failed)",
        "Ended(Aborted)",
        "Ended(Cancelled)",
        "Outlived",
        "Refused(UnknownKey)",
        "Refused(TenantDisabled)",
        "Refused(ModelNotAllowed)",
        "Refused(ModelNotFound)",
        "Refused(ContextLengthExceeded)",
        "Refused(TenantConcurrency)",
        "Refused(TenantRequestsPerSecond)",
        "Refused(TenantRequestsPerMinute)",
        "Refused(TenantTokensPerMinute)",
        "Refused(QueueFull)",
        "Refused(QueueTimeout)",
        "Refused(DeadlineUnreachable)",
        "Refused(LedgerUnavailable)",
        "Refused(ShuttingDown)",
    ];
    for fate in expected {
        assert!(fates.get(fate).is_some_and(|times| *times >= 5), "{fate} in {fates:#?}");
    }
    assert!(fates["waited: true"] > 2_000 && fates["races"] > 5_000, "{fates:#?}");
}
