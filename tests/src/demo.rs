//! `./justw demo`: three departments and three customer tiers call one small model, and what happened is told.
//!
//! Everything runs for real – Envoy, the filter, the sidecar, a model on llama.cpp – except the GPUs, whose load is
//! made up. The numbers beside Sluice's own come from a proxy in front of the model and from the model's replies.

mod by_hand;
mod cast;
mod outcome;
mod page;
mod summary;

use crate::stack::{Ports, Stack};
use anyhow::{Result, bail};
use page::Page;
use std::time::Duration;

/// The namespaces of the shipped configuration's tenants, one made-up GPU each.
const NAMESPACES: [&str; 6] = ["dept-a", "dept-b", "dept-c", "premium", "standard", "free"];
/// Settlements and the first scrape of the GPU exporter take a fraction of this.
const SETTLES_WITHIN: Duration = Duration::from_secs(15);

/// Starts everything, tells the story and, unless `exit` is set, leaves it running for visitors until it is dropped.
///
/// # Errors
/// When something does not start, or does not hold what Sluice promises.
pub async fn run(exit: bool) -> Result<()> {
    let page = Page::new();
    page.title("Sluice: who may call the model, now, later or not at all");
    page.line("Starting, on this machine only:");
    let stack = Stack::builder("demo")
        .as_shipped()
        .real_model()
        .gpus(&NAMESPACES)
        .ports(Ports::Documented)
        .progress(|what| Page::new().line(&format!("  · {what}")))
        .start()
        .await?;
    by_hand::tell_unusual_ports(&page, &stack);

    let outcomes = cast::play(&page, &stack).await?;
    let held = summary::tell(&page, &stack, &outcomes).await?;
    if exit {
        return if held { Ok(()) } else { bail!("not everything held") };
    }
    by_hand::tell(&page, &stack)?;
    std::future::pending().await
}
