use super::*;
use sluice_policy::units::Tokens;
use sluice_policy::wire::Usage;
use std::sync::atomic::{AtomicBool, Ordering};

/// Of each call.
const OUTPUT: u64 = 3;
const PAGES: usize = 3_000;

fn settlement() -> (Settlement, Settled) {
    let usage = Usage { source: UsageSource::Reported, output: Tokens(OUTPUT), ..Usage::default() };
    let settlement = Settlement {
        id: "w-1".into(),
        outcome: Outcome::Completed,
        usage,
        charge_to: None,
        timing: None,
        abandoned: false,
    };
    let settled = Settled { tenant: "a".into(), pool: "pool".into(), model: "m".into(), usage };
    (settlement, settled)
}

/// The sum of a metric's series whose labels contain `labels`.
fn sum(page: &str, name: &str, labels: &str) -> u64 {
    let series = page.lines().filter(|line| line.starts_with(&format!("{name}{{")) && line.contains(labels));
    series.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

/// Pages that are made while another thread does `change` again and again.
fn pages_during(metrics: &Metrics, change: impl Fn(&Metrics) + Sync, check: impl Fn(&str)) {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                change(metrics);
            }
        });
        let pages = (0..PAGES).map(|_| metrics.render(metrics.moment(Vec::new())).unwrap()).collect::<Vec<_>>();
        is_over.store(true, Ordering::Relaxed);
        pages.iter().for_each(|page| check(page));
    });
}

#[test]
fn a_page_that_counts_a_call_counts_its_tokens_too() {
    let metrics = Metrics::new(false).unwrap();
    let (settlement, settled) = settlement();
    let change = |metrics: &Metrics| metrics.settled(&settlement, Some(&settled), Price::default());
    pages_during(&metrics, change, |page| {
        let (calls, tokens) =
            (sum(page, "sluice_settlements_total", ""), sum(page, "sluice_tokens_total", "kind=\"output\""));
        assert!(tokens >= calls * OUTPUT, "{calls} calls and {tokens} tokens");
    });
}

#[test]
fn what_stands_where_is_shown_as_it_was_at_the_moment() {
    let metrics = Metrics::new(false).unwrap();
    let mut depths = [0; Priority::COUNT];
    depths[5] = 7;
    let pool = PoolView { name: "smol".into(), capacity: 9, held: 4, running: 3, orphaned: 1, depths };
    let page = metrics.render(metrics.moment(vec![pool])).unwrap();
    for (name, number) in [
        ("sluice_capacity", 9),
        ("sluice_held_slots", 4),
        ("sluice_running", 3),
        ("sluice_orphans", 1),
        ("sluice_queue_depth", 7),
    ] {
        assert_eq!(sum(&page, name, "pool=\"smol\""), number, "{name}");
    }
    assert!(page.contains("sluice_queue_depth{pool=\"smol\",priority=\"5\"} 7\n"), "{page}");
}
