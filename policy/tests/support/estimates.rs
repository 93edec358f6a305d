//! The estimated wait of a pool that is limited by tokens or requests: how far from the truth it is.

use crate::chance::Chance;
use crate::setup::{Setup, TenantSetup};
use crate::world::{Ask, LEASE_MS, World, id, started};
use sluice_policy::admission::{Decision, Fate};
use sluice_policy::units::Tokens;
use sluice_policy::wire::{Outcome, Usage, UsageSource};
use std::collections::{BTreeMap, BTreeSet};

const LARGEST: u64 = 5_000;

/// A pool whose calls hold their slots for a while and cost a part of what they reserve.
struct Shop {
    world: World,
    chance: Chance,
    service: u64,
    cost_percent: u64,
    sizes: BTreeMap<usize, u64>,
    ends: BTreeSet<(u64, usize)>,
}

impl Shop {
    /// A call of any tenant; its number.
    fn call(&mut self) -> usize {
        let (number, tenant) = (self.sizes.len(), self.chance.index(self.world.tenants.len()));
        let size = self.chance.size(50, LARGEST);
        self.sizes.insert(number, size);
        match self.world.ask(number, &Ask::of(tenant, size)) {
            Decision::Admitted(_) => drop(self.ends.insert((self.world.now + self.service, number))),
            Decision::Queued => {}
            Decision::Rejected(refusal) => panic!("{refusal:?}"),
        }
        self.turn();
        number
    }

    fn turn(&mut self) {
        let starts = started(self.world.turn());
        self.ends.extend(starts.iter().map(|number| (self.world.now + self.service, *number)));
    }

    fn waits(&self, number: usize) -> bool {
        self.world.core.explain(&id(number)).unwrap().fate == Fate::Waiting
    }

    /// Lets time pass until something happens.
    fn pass(&mut self) {
        let now = self.world.now;
        let wake = self.world.next_wake().map_or(u64::MAX, |at| at.0.max(now + 1));
        let end = self.ends.first().map_or(u64::MAX, |(at, _)| *at);
        self.world.now = wake.min(end).min(now + LEASE_MS / 4);
        while let Some((at, number)) = self.ends.first().copied()
            && at <= self.world.now
        {
            self.ends.pop_first();
            let input = Tokens(self.sizes[&number] * self.cost_percent / 100);
            let usage = Usage {
                source: UsageSource::Reported,
                input,
                output: Tokens(0),
                cached: Tokens(0),
                reasoning: Tokens(0),
            };
            assert!(self.world.settle(number, Outcome::Completed, usage).is_some());
        }
        self.turn();
    }
}

/// A pool that is short of tokens or of requests more often than of slots, as a seed makes it up, and what it told one
/// caller: the estimate, the truth, and how long one call holds its slot and one of each tenant may take of the bucket, all
/// in milliseconds.
fn watch(seed: u64) -> (u64, u64, u64) {
    let mut chance = Chance::seeded(seed);
    let tenants = (0..chance.between(1, 4)).map(|_| TenantSetup::plain(chance.between(0, 9) as u8)).collect();
    let mut setup = Setup::plain(chance.between(1, 300) as u32, tenants);
    let (rate, requests) = (chance.between(500, 20_000), chance.percent(30));
    if requests {
        setup.pools[0].requests_per_s = Some(rate / 500);
    } else {
        setup.pools[0].tokens_per_s = Some(rate);
        setup.pools[0].burst = Some(rate * chance.between(10, 300) / 100);
    }
    let (service, cost_percent, backlog) = (chance.between(20, 3_000), chance.between(40, 150), chance.index(60));
    let world = World::new(&setup);
    let mut shop = Shop { world, chance, service, cost_percent, sizes: BTreeMap::new(), ends: BTreeSet::new() };
    for _ in 0..100 {
        while shop.world.waiting() < backlog {
            shop.call();
        }
        shop.pass();
    }
    let mut watched = shop.call();
    while !shop.waits(watched) {
        watched = shop.call();
    }
    let (told, since) = (shop.world.core.explain(&id(watched)).unwrap().queued_at.unwrap(), shop.world.now);
    // Nobody comes any more.
    while shop.waits(watched) {
        shop.pass();
    }
    let largest = if requests { 1_000 / (rate / 500) } else { LARGEST * 1_000 / rate };
    (told.estimated_wait.0, shop.world.now - since, service + largest * setup.tenants.len() as u64)
}

/// Debt, what those ahead will draw, what comes back, and the pace of slots: all are in the estimate. Of 20,000 seeds one
/// is further off: its level was overtaken by one whose calls gave back more than was left to wait for.
#[test]
fn the_estimated_wait_is_right_within_a_factor_of_two_and_a_call_of_each_tenant() {
    let mut near = 0;
    for seed in 0..1_000 {
        let (estimated, waited, calls) = watch(seed);
        assert!(estimated <= 2 * waited + calls, "{seed}: {estimated} ms told, {waited} ms waited; {calls}");
        assert!(waited <= 2 * estimated + calls, "{seed}: {estimated} ms told, {waited} ms waited; {calls}");
        near += u32::from(estimated * 2 <= waited * 3 && waited * 2 <= estimated * 3);
    }
    assert!(near >= 850, "only {near} of 1,000 are right within a half");
}
