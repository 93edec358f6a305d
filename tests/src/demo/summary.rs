//! The sums by tenant, Sluice's beside the model's, and whether everything held.

use super::outcome::{Outcome, seconds};
use super::page::Page;
use super::{NAMESPACES, SETTLES_WITHIN};
use crate::metrics::Metrics;
use crate::stack::Stack;
use crate::upstream::Usage;
use anyhow::Result;
use std::time::Duration;

/// Tells the sums and the checks; true when everything held.
pub(super) async fn tell(page: &Page, stack: &Stack, outcomes: &[Outcome]) -> Result<bool> {
    let served = outcomes.iter().filter(|outcome| outcome.served()).count() as u64;
    let metrics = stack
        .operators()
        .wait_for_metrics("all calls are settled and the GPUs scraped", SETTLES_WITHIN, |metrics| {
            metrics.sum("sluice_settlements_total", &[]) >= served
                && NAMESPACES.iter().all(|tenant| gpu(metrics, "gpu_utilization", tenant).is_some())
        })
        .await?;

    page.title("Who got what");
    let tally: Vec<Tally> =
        stack.tenants.iter().map(|tenant| Tally::of(&tenant.id, stack, outcomes, &metrics)).collect();
    tell_tally(page, &tally);

    page.title("What held");
    let checks = checks(stack, outcomes, &tally);
    for (claim, held) in &checks {
        if *held { page.line(&format!("  yes  {claim}")) } else { page.warning(&format!("  NO   {claim}")) }
    }
    Ok(checks.iter().all(|(_, held)| *held))
}

/// One tenant's sums.
struct Tally {
    tenant: String,
    served: usize,
    refused: usize,
    longest_wait: Duration,
    /// By Sluice.
    metered: Usage,
    /// By the model.
    reported: Usage,
    /// Per cent and degrees Celsius.
    gpu: Option<(f64, f64)>,
}

impl Tally {
    fn of(tenant: &str, stack: &Stack, outcomes: &[Outcome], metrics: &Metrics) -> Self {
        let own = || outcomes.iter().filter(|outcome| outcome.who == tenant);
        let calls = stack.upstream.calls().all();
        let of_tenant = calls.iter().filter(|call| call.header("x-tenant-id") == Some(tenant));
        let kind = |kind| metrics.sum("sluice_tokens_total", &[("tenant", tenant), ("kind", kind)]);
        Self {
            tenant: tenant.to_owned(),
            served: own().filter(|outcome| outcome.served()).count(),
            refused: own().filter(|outcome| !outcome.served()).count(),
            longest_wait: own().map(Outcome::waited).max().unwrap_or_default(),
            metered: Usage { input: kind("input"), output: kind("output"), cached: kind("cached") },
            reported: of_tenant.filter_map(|call| call.usage).sum(),
            gpu: gpu(metrics, "gpu_utilization", tenant).zip(gpu(metrics, "gpu_temperature", tenant)),
        }
    }
}

fn gpu(metrics: &Metrics, name: &str, tenant: &str) -> Option<f64> {
    metrics.matching(name, &[("tenant", tenant)]).next().map(|sample| sample.value)
}

fn tell_tally(page: &Page, tally: &[Tally]) {
    page.line(&format!(
        "  {:<9} {:>6} {:>7} {:>12}   {:^19}   {:^19}",
        "", "", "", "", "metered by Sluice", "told by the model"
    ));
    page.head(&format!(
        "  {:<9} {:>6} {:>7} {:>12}   {:>9} {:>9}   {:>9} {:>9}   {}",
        "tenant", "served", "refused", "longest wait", "input", "output", "input", "output", "GPU (made up)"
    ));
    for row in tally {
        let gpu = row.gpu.map_or("-".to_owned(), |(load, degrees)| format!("{load:.0} %, {degrees:.0} °C"));
        page.line(&format!(
            "  {:<9} {:>6} {:>7} {:>12}   {:>9} {:>9}   {:>9} {:>9}   {gpu}",
            row.tenant,
            row.served,
            row.refused,
            seconds(row.longest_wait),
            row.metered.input,
            row.metered.output,
            row.reported.input,
            row.reported.output,
        ));
    }
}

fn checks(stack: &Stack, outcomes: &[Outcome], tally: &[Tally]) -> Vec<(String, bool)> {
    let served = outcomes.iter().filter(|outcome| outcome.served());
    let most = stack.upstream.calls().max_running();
    let lost = outcomes.iter().filter(|outcome| !outcome.served() && outcome.reply.reason().is_none()).count();
    let refused = |who: &str, reason: &str| {
        outcomes.iter().any(|outcome| outcome.who == who && outcome.reply.reason() == Some(reason))
    };
    let wait = |who: &str| tally.iter().find(|row| row.tenant == who).map(|row| row.longest_wait);
    vec![
        (format!("never more than 2 calls ran in the model (at most {most})"), most <= 2),
        ("some calls had to wait".to_owned(), served.clone().any(|outcome| outcome.waited() > Duration::ZERO)),
        ("dept-a (P0) waited less than standard (P7)".to_owned(), wait("dept-a") < wait("standard")),
        ("the free tier's calls beyond its limit were refused".to_owned(), refused("free", "tenant_concurrency")),
        ("an unknown key was refused".to_owned(), refused("a stranger", "unknown_key")),
        ("every other call was served to its end".to_owned(), lost == 0),
        (
            "every tenant was charged exactly what the model reported".to_owned(),
            tally.iter().all(|row| row.metered == row.reported && row.reported.total() > 0),
        ),
        ("every tenant's GPU load is known".to_owned(), tally.iter().all(|row| row.gpu.is_some())),
    ]
}
