//! Who calls when. The free tier comes first and takes every slot; then come all others at once, and the queue decides.

use super::outcome::{self, Outcome};
use super::page::Page;
use crate::client::{Chat, send};
use crate::keys::unknown_key;
use crate::stack::{MODEL, Stack};
use crate::tenant::Tenant;
use crate::wait::wait_until;
use anyhow::{Context, Result};
use reqwest::Method;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// More than the shipped `limits.concurrent` of the free tier, so that some are refused.
const FREE_CALLS: usize = 5;
const CALLS: usize = 3;
const PROMPTS: [&str; 3] = ["Describe a water mill.", "Write two lines about rivers.", "What is a sluice gate for?"];

/// Plays the story, tells each call when it ends, and gives them all.
pub(super) async fn play(page: &Page, stack: &Stack) -> Result<Vec<Outcome>> {
    page.title("Everybody calls at once; the model runs 2 calls at a time");
    page.line("  P0 goes first; behind it every level gets its share by weight, so nobody starves.");
    page.line("");
    outcome::tell_head(*page);
    let started = Instant::now();
    let mut callers = JoinSet::new();
    let (free, others): (Vec<&Tenant>, Vec<&Tenant>) = stack.tenants.iter().partition(|tenant| tenant.id == "free");
    for tenant in free {
        call(&mut callers, stack, tenant, FREE_CALLS, started)?;
    }
    let calls = stack.upstream.calls();
    wait_until("the free tier's calls run", Duration::from_secs(20), || async { calls.running() > 0 }).await?;
    // The least urgent first, so that the order below is the queue's work and not ours.
    for tenant in others.into_iter().rev() {
        call(&mut callers, stack, tenant, CALLS, started)?;
    }
    tell_the_queue(page, stack).await?;

    let mut outcomes = Vec::new();
    while let Some(outcome) = callers.join_next().await {
        let outcome = outcome.context("a caller ended early")??;
        outcome::tell(*page, &outcome);
        outcomes.push(outcome);
    }
    outcomes.extend(strangers(page, stack, started).await?);
    Ok(outcomes)
}

/// Starts some calls of a tenant, every other one as a stream.
fn call(
    callers: &mut JoinSet<Result<Outcome>>,
    stack: &Stack,
    tenant: &Tenant,
    count: usize,
    started: Instant,
) -> Result<()> {
    let client = stack.client(&tenant.id)?;
    for (index, prompt) in (0..count).zip(PROMPTS.iter().cycle()) {
        let chat = Chat::to(MODEL).prompt(prompt).max_tokens(24);
        let chat = if index % 2 == 0 { chat } else { chat.stream() };
        let (client, tenant) = (client.clone(), tenant.clone());
        callers.spawn(async move {
            let reply = client.chat(&chat).await?;
            Ok(Outcome::new(&tenant, reply, started.elapsed()))
        });
    }
    Ok(())
}

async fn tell_the_queue(page: &Page, stack: &Stack) -> Result<()> {
    let arrived = (stack.tenants.len() - 1) * CALLS;
    // Some may have been served by now on a fast machine; then there is less to tell.
    let _ = wait_until("most calls have arrived", Duration::from_secs(2), || async {
        stack.operators().queued_now().await.is_ok_and(|queued| queued as usize >= arrived)
    })
    .await;
    let queued = stack.operators().queued_now().await?;
    page.line(&format!("  … {} run in the model, {queued} wait", stack.upstream.calls().running()));
    Ok(())
}

/// Calls that must not get in at all.
async fn strangers(page: &Page, stack: &Stack, started: Instant) -> Result<Vec<Outcome>> {
    let (unknown, known) = (stack.anonymous()?.with_key(unknown_key()), stack.client("dept-c")?);
    let dept_c = stack.tenants.iter().find(|tenant| tenant.id == "dept-c").context("no dept-c")?;
    page.line("");
    page.line("  An unknown key, a model nobody has, and the model server's own admin API:");
    let reply = send(unknown.chat_request(Chat::to(MODEL).text())).await?;
    let mut outcomes = vec![Outcome::of_a_stranger(reply, started.elapsed())];
    let elsewhere = known.chat_request(Chat::to("nobody-has-this").text());
    let admin = known.request(Method::POST, "/v1/load_lora_adapter").body("{}");
    for request in [elsewhere, admin] {
        outcomes.push(Outcome::new(dept_c, send(request).await?, started.elapsed()));
    }
    for outcome in &outcomes {
        outcome::tell(*page, outcome);
    }
    Ok(outcomes)
}
