//! `faults [WORD…]`: breaks whatever may break under load, and tells in a line each how that went; with words only the
//! faults whose name holds one of them.

use anyhow::{Result, ensure};
use clap::Parser;
use e2e::faults::{Home, KINDS, Kind, Outcome, Patience, World};
use e2e::paths;
use std::time::Duration;

#[derive(Parser)]
#[command(about = "Breaks whatever may break under load, and tells how that went")]
struct Arguments {
    /// Only faults whose name holds one of these.
    words: Vec<String>,
    /// Only the names of the faults.
    #[arg(long)]
    list: bool,
}

/// Others may use this machine, too.
const SLACK: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> Result<()> {
    let Arguments { words, list } = Arguments::parse();
    let chosen = |kind: &&Kind| words.is_empty() || words.iter().any(|word| kind.name.contains(word.as_str()));
    let kinds: Vec<&Kind> = KINDS.into_iter().flatten().filter(chosen).collect();
    if list {
        kinds.iter().for_each(|kind| println!("{}", kind.name));
        return Ok(());
    }
    println!("{}", Outcome::head());
    let (mut tried, mut failed) = (0, 0);
    for home in Home::ALL {
        let at_home: Vec<&Kind> = kinds.iter().copied().filter(|kind| kind.home == home).collect();
        if home == Home::Clock && paths::tool("bin/libfaketime.so").is_err() {
            at_home.iter().for_each(|kind| println!("{:<60} left out: there is no libfaketime", kind.name));
            continue;
        }
        if !at_home.is_empty() {
            tried += at_home.len();
            failed += try_all(home, &at_home).await?;
        }
    }
    let (usually, shipped) = (Home::Server.bound().as_millis(), Home::Shipped.bound().as_millis());
    println!("{tried} faults; whole again means within {usually} ms after the fault is over, as shipped {shipped}");
    ensure!(failed == 0, "{failed} faults were not overcome as promised");
    Ok(())
}

async fn try_all(home: Home, kinds: &[&Kind]) -> Result<usize> {
    let mut world = World::start("faults", home).await?;
    let mut failed = 0;
    for kind in kinds {
        let outcome = Outcome::of(kind, &mut world, Patience::Full).await?;
        let held = outcome.held(SLACK);
        println!("{outcome}{}", if held { "" } else { "   <- not as promised" });
        failed += usize::from(!held);
    }
    world.end().await?;
    Ok(failed)
}
