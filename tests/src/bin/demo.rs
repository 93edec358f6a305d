//! `./justw demo`: see [`e2e::demo`].

use anyhow::Result;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(about = "Shows Sluice at work: real calls of three departments and three customer tiers")]
struct Arguments {
    /// End after the story, with exit code 0 only if everything held.
    #[arg(long)]
    exit: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    // Whichever comes first; the story owns every process that it started, and dropping it stops them.
    tokio::select! {
        ended = e2e::demo::run(arguments.exit) => ended,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}
