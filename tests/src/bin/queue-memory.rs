//! `queue-memory N`: the bytes that each of N waiters costs, with everything that the core keeps for it.

use anyhow::{Context, Result};
use cap::Cap;
use e2e::crowd::Crowd;
use std::alloc::System;

#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

#[allow(clippy::cast_precision_loss)] // bytes far below 2^52
fn main() -> Result<()> {
    let waiters: usize =
        std::env::args().nth(1).and_then(|count| count.parse().ok()).context("usage: queue-memory N")?;
    let mut crowd = Crowd::new(1)?;
    let before = MEMORY.allocated();
    crowd.fill(waiters)?;
    let after = MEMORY.allocated();
    println!("{:.1}", (after - before) as f64 / waiters as f64);
    Ok(())
}
