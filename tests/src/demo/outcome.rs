//! What became of one call, and how a line tells it.

use super::page::Page;
use crate::client::Reply;
use crate::tenant::Tenant;
use std::time::Duration;

pub(super) struct Outcome {
    pub(super) who: String,
    pub(super) tier: String,
    /// Such as `P0`; `-` for one who is nobody's tenant.
    pub(super) level: String,
    pub(super) reply: Reply,
    /// From the start of the story to the end of the reply.
    pub(super) at: Duration,
}

impl Outcome {
    pub(super) fn new(tenant: &Tenant, reply: Reply, at: Duration) -> Self {
        let level = format!("P{}", tenant.default_level());
        Self { who: tenant.id.clone(), tier: tenant.tier_name(), level, reply, at }
    }

    /// One whose key belongs to nobody.
    pub(super) fn of_a_stranger(reply: Reply, at: Duration) -> Self {
        Self { who: "a stranger".to_owned(), tier: "-".to_owned(), level: "-".to_owned(), reply, at }
    }

    pub(super) fn served(&self) -> bool {
        self.reply.status == 200 && !self.reply.broken
    }

    pub(super) fn waited(&self) -> Duration {
        self.reply.waited().unwrap_or_default()
    }
}

pub(super) fn tell_head(page: Page) {
    page.head(&row("at", "who", "tier", "level", "waited", "took", "outcome"));
}

pub(super) fn tell(page: Page, outcome: &Outcome) {
    let waited = if outcome.served() { seconds(outcome.waited()) } else { "-".to_owned() };
    let line = row(
        &seconds(outcome.at),
        &outcome.who,
        &outcome.tier,
        &outcome.level,
        &waited,
        &seconds(outcome.reply.took),
        &verdict(outcome),
    );
    if outcome.served() { page.line(&line) } else { page.warning(&line) }
}

fn verdict(outcome: &Outcome) -> String {
    if outcome.served() {
        return "served".to_owned();
    }
    let reason = outcome.reply.reason().unwrap_or("broken off");
    match outcome.reply.header("retry-after") {
        Some(after) => format!("refused {} {reason}, retry in {after} s", outcome.reply.status),
        None => format!("refused {} {reason}", outcome.reply.status),
    }
}

fn row(at: &str, who: &str, tier: &str, level: &str, waited: &str, took: &str, outcome: &str) -> String {
    format!("  {at:>7}  {who:<10} {tier:<8} {level:<5}  {waited:>7} {took:>7}  {outcome}")
}

pub(super) fn seconds(span: Duration) -> String {
    format!("{:.2} s", span.as_secs_f64())
}
