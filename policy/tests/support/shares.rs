//! Weights, tenants, groups and large requests, through the whole of the admission core.

use crate::chance::cases;
use crate::setup::{Setup, TenantSetup};
use crate::world::{Ask, World, started};
use proptest::prelude::*;
use sluice_policy::admission::Decision;
use sluice_policy::config::reader::read_document;
use sluice_policy::schedule::{TimeRules, UnixMillis};

/// Callers that always have enough calls waiting, one kind each: tenant and tokens.
struct Backlog {
    world: World,
    kinds: Vec<(usize, u64)>,
    /// Which kind each call is of.
    calls: Vec<usize>,
    running: Vec<usize>,
    /// Tokens of every kind that have started.
    served: Vec<u64>,
}

impl Backlog {
    fn new(setup: &Setup, kinds: &[(usize, u64)]) -> Self {
        let mut backlog = Self {
            world: World::new(setup),
            kinds: kinds.to_vec(),
            calls: Vec::new(),
            running: Vec::new(),
            served: vec![0; kinds.len()],
        };
        for kind in 0..kinds.len() {
            (0..setup.pools[0].concurrent + 2).for_each(|_| backlog.call(kind));
        }
        backlog
    }

    fn call(&mut self, kind: usize) {
        let (tenant, tokens) = self.kinds[kind];
        let number = self.calls.len();
        self.calls.push(kind);
        match self.world.ask(number, &Ask::of(tenant, tokens)) {
            Decision::Admitted(_) => self.starts(number),
            Decision::Queued => {}
            Decision::Rejected(refusal) => panic!("{refusal:?}"),
        }
    }

    fn starts(&mut self, number: usize) {
        self.running.push(number);
        self.served[self.calls[number]] += self.kinds[self.calls[number]].1;
    }

    /// The call that has run longest ends; whoever starts is replaced in the queue.
    fn step(&mut self) -> usize {
        let ends = self.running.remove(0);
        self.world.end(ends, self.kinds[self.calls[ends]].1);
        self.take_events()
    }

    fn take_events(&mut self) -> usize {
        let mut starts = 0;
        for number in started(self.world.turn()) {
            self.starts(number);
            self.call(self.calls[number]);
            starts += 1;
        }
        starts
    }

    fn serve(&mut self, starts: usize) {
        let mut done = 0;
        while done < starts {
            done += self.step();
        }
    }

    /// From now on only what starts from here counts.
    fn forget(&mut self) {
        self.served.fill(0);
    }
}

#[test]
fn levels_are_served_by_weight_within_two_percent_at_500_and_at_32_000_tokens() {
    for size in [500, 32_000] {
        let tenants: Vec<TenantSetup> = (1..=9).map(TenantSetup::plain).collect();
        let setup = Setup::plain(8, tenants);
        let kinds: Vec<(usize, u64)> = (0..9).map(|tenant| (tenant, size)).collect();
        let mut backlog = Backlog::new(&setup, &kinds);
        backlog.serve(20_000);
        let (total, weights) = (backlog.served.iter().sum::<u64>(), &setup.weights[1..]);
        let all: u64 = weights.iter().sum();
        for (level, (tokens, weight)) in (1..).zip(backlog.served.iter().zip(weights)) {
            let expected = total * weight / all;
            assert!(tokens.abs_diff(expected) * 100 <= expected * 2, "P{level} got {tokens} of {expected} at {size}");
        }
    }
}

#[test]
fn ten_tenants_of_a_level_share_its_tokens_equally_whatever_they_ask_for() {
    let sizes = [50, 100, 300, 1_000, 2_500, 5_000, 9_000, 15_000, 32_000, 50_000];
    let setup = Setup::plain(8, vec![TenantSetup::plain(5); sizes.len()]);
    let kinds: Vec<(usize, u64)> = sizes.into_iter().enumerate().collect();
    let mut backlog = Backlog::new(&setup, &kinds);
    backlog.serve(50_000);
    let sum: u128 = backlog.served.iter().map(|tokens| u128::from(*tokens)).sum();
    let squares: u128 = backlog.served.iter().map(|tokens| u128::from(*tokens).pow(2)).sum();
    // Jain's index: (Σx)² / (n·Σx²).
    assert!(sum * sum * 100 >= squares * 10 * 99, "{:?}", backlog.served);
}

#[test]
fn a_tenant_back_from_idle_shares_equally_and_claims_nothing_of_the_past() {
    let setup = Setup::plain(4, vec![TenantSetup::plain(5); 3]);
    let mut backlog = Backlog::new(&setup, &[(0, 1_000), (1, 1_000)]);
    backlog.serve(5_000);
    backlog.kinds.push((2, 1_000));
    backlog.served.push(0);
    (0..6).for_each(|_| backlog.call(2));
    backlog.forget();
    backlog.serve(30);
    assert!(backlog.served.iter().all(|tokens| tokens.abs_diff(10_000) <= 1_000), "{:?}", backlog.served);
}

#[test]
fn a_tenant_that_had_the_pool_to_itself_all_night_is_not_made_to_wait_in_the_morning() {
    let setup = Setup::plain(2, vec![TenantSetup::plain(5); 2]);
    let mut world = World::new(&setup);
    for number in 0..2_000 {
        assert!(matches!(world.ask(number, &Ask::of(0, 1_000)), Decision::Admitted(_)));
        world.end(number, 1_000);
        world.turn();
    }
    // Both come at once, the newcomer first.
    let mut running = Vec::new();
    for number in 2_000..2_100 {
        if let Decision::Admitted(_) = world.ask(number, &Ask::of(1 - number % 2, 1_000)) {
            running.push(number);
        }
        running.extend(started(world.turn()));
    }
    let mut of_old = 0;
    for _ in 0..20 {
        world.end(running.remove(0), 1_000);
        running.extend(started(world.turn()));
        of_old += running[1] % 2;
    }
    assert!((8..=12).contains(&of_old), "the first tenant had {of_old} of 20 starts");
}

proptest! {
    #![proptest_config(cases(100))]

    /// A request larger than the bucket's burst waits for a full bucket and starts then: it is neither refused nor
    /// starved by small ones that go on coming, at its own level and at a lower one. Its debt is paid before anybody
    /// else starts.
    #[test]
    fn a_request_larger_than_the_burst_is_served_when_the_bucket_is_full(
        rate in 100_u64..5_000, burst in 100_u64..5_000, factor in 2_u64..10,
        small in 17_u64..100, ahead in 0_usize..20,
    ) {
        let mut setup = Setup::plain(8, [5, 5, 8].map(TenantSetup::plain).to_vec());
        (setup.pools[0].tokens_per_s, setup.pools[0].burst) = (Some(rate), Some(burst));
        let (mut world, large) = (World::new(&setup), burst * factor);
        let mut asked = 0;
        // Small ones empty the bucket, and some wait.
        while world.waiting() <= ahead {
            asked += 1;
            let decision = world.ask(asked, &Ask::of(asked % 2 * 2, small));
            let mut running = started(world.turn());
            running.extend(matches!(decision, Decision::Admitted(_)).then_some(asked));
            // It is not the slots that are short.
            running.into_iter().for_each(|number| world.end(number, small));
        }
        prop_assert_eq!(world.ask(0, &Ask::of(1, large)), Decision::Queued);
        // Whoever was ahead, whoever has a turn before it by the weights, and a full bucket.
        let patience = world.now + (burst + 4 * (large + (ahead as u64 + 10) * small)) * 1_000 / rate + 1_000;
        loop {
            let wake = world.next_wake().map_or(world.now + 500, |wake| wake.0);
            world.now = wake.clamp(world.now + 1, world.now + 500);
            let starts = started(world.turn());
            if starts.contains(&0) {
                prop_assert_eq!(starts.last(), Some(&0));
                break;
            }
            starts.into_iter().for_each(|number| world.end(number, small));
            prop_assert!(world.now < patience, "it starved for {patience} ms");
            for tenant in [0, 2] {
                asked += 1;
                prop_assert_eq!(world.ask(asked, &Ask::of(tenant, small)), Decision::Queued);
            }
        }
        let paid = world.now + (large - burst) * 1_000 / rate;
        while world.now + 500 < paid {
            prop_assert_eq!(started(world.wait(400)), Vec::<usize>::new());
        }
    }

    /// A rule flips the groups' shares at its hour, for every share, and at no cost of a waiter; a group alone has all.
    #[test]
    fn rules_flip_the_groups_shares_at_their_hour_and_lose_nobody(day in (1_u64..100, 1_u64..100), slots in 1_u32..6) {
        let in_group = |group| TenantSetup { group, ..TenantSetup::plain(5) };
        let mut setup = Setup::plain(slots, vec![in_group(1), in_group(2)]);
        setup.groups = 2;
        setup.pools[0].shares = vec![day.0, day.1];
        let document = serde_json::json!({"time_rules": [{
            "name": "night", "zone": "Europe/Berlin", "from": "18:00", "to": "08:00",
            "set": {"pools": [{"name": "p0", "shares": {"internal": day.1, "external": day.0}}]},
        }]});
        let groups = ["internal", "external"].map(str::to_owned).into();
        let rules = read_document(&document, |root| Some(TimeRules::read(root, &setup.settings(), &groups))).unwrap();
        let mut backlog = Backlog::new(&setup, &[(0, 1_000), (1, 1_000)]);
        // 2026-03-02, noon and eight in the evening in Berlin, and noon again.
        for (at, shares) in [(1_772_449_200_000, day), (1_772_478_000_000, (day.1, day.0)), (1_772_535_600_000, day)] {
            let settings = rules.effective(&setup.settings(), UnixMillis(at));
            let waiting = backlog.world.waiting();
            backlog.world.put_in_force(&settings);
            prop_assert_eq!(backlog.world.waiting(), waiting);
            backlog.forget();
            backlog.serve(400);
            let (a, b) = (backlog.served[0] * shares.1, backlog.served[1] * shares.0);
            let allowed = u64::from(slots + 1) * 1_000 * shares.0.max(shares.1);
            prop_assert!(a.abs_diff(b) <= allowed, "{:?} of {shares:?}", backlog.served);
        }
    }

    /// I4 between levels of any weights, sizes and slots, through the whole core.
    #[test]
    fn backlogged_levels_differ_by_at_most_k_plus_one_charges_per_weight(
        weights in prop::array::uniform10(1_u64..300),
        sizes in prop::collection::vec(20_u64..50_000, 2..9), slots in 1_u32..9,
    ) {
        let mut setup = Setup::plain(slots, (1..10).map(TenantSetup::plain).collect());
        setup.weights = weights;
        let kinds: Vec<(usize, u64)> = sizes.iter().copied().enumerate().collect();
        let mut backlog = Backlog::new(&setup, &kinds);
        // Until all of them wait, some started past them.
        backlog.forget();
        backlog.serve(500);
        let per_weight = |tokens: u64, kind: usize| u128::from(tokens) * 1_000 / u128::from(weights[kind + 1]);
        for (a, b) in (0..sizes.len()).flat_map(|a| (0..a).map(move |b| (a, b))) {
            let allowed = u128::from(slots + 1) * per_weight(sizes[a], a).max(per_weight(sizes[b], b)) + 10;
            let apart = per_weight(backlog.served[a], a).abs_diff(per_weight(backlog.served[b], b));
            prop_assert!(apart <= allowed, "{:?} of {sizes:?}", backlog.served);
        }
    }
}
