use super::*;
use sluice_policy::units::Tokens;
use sluice_policy::wire::Usage;
use std::sync::atomic::{AtomicBool, Ordering};

/// Of each call.
const OUTPUT: u64 = 3;
const PAGES: usize = 3_000;

fn settlement() -> (Settlement, Settled) {
    let usage = Usage { source: UsageSource::Reported, output: Tokens(OUTPUT), ..Usage::default() };
    let settlement = Settlement { id: "w-1".into(), outcome: Outcome::Completed, usage, charge_to: None, timing: None };
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
        let pages = (0..PAGES).map(|_| metrics.render().unwrap()).collect::<Vec<_>>();
        is_over.store(true, Ordering::Relaxed);
        pages.iter().for_each(|page| check(page));
    });
}

#[test]
fn a_page_that_counts_a_call_counts_its_tokens_too() {
    let metrics = Metrics::new().unwrap();
    let (settlement, settled) = settlement();
    let change = |metrics: &Metrics| metrics.settled(&settlement, Some(&settled), Price::default());
    pages_during(&metrics, change, |page| {
        let (calls, tokens) =
            (sum(page, "sluice_settlements_total", ""), sum(page, "sluice_tokens_total", "kind=\"output\""));
        assert!(tokens >= calls * OUTPUT, "{calls} calls and {tokens} tokens");
    });
}

#[test]
fn gauges_that_are_set_together_are_shown_together() {
    let metrics = Metrics::new().unwrap();
    let set = |metrics: &Metrics, running: i64| {
        let _together = metrics.together();
        metrics.running.with_label_values(&["pool"]).set(running);
        metrics.queue_depth.with_label_values(&["pool", "5"]).set(1 - running);
    };
    set(&metrics, 0);
    let change = |metrics: &Metrics| (0..2).for_each(|running| set(metrics, running));
    pages_during(&metrics, change, |page| {
        let (running, queued) = (sum(page, "sluice_running", ""), sum(page, "sluice_queue_depth", ""));
        assert_eq!(running + queued, 1, "{running} runs, {queued} waits");
    });
}
