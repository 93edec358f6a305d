//! Simulates a scene and prints its whole report: run natively and as wasm32, both must print the same.
//!
//!     cargo run --locked -p sluice-policy --example simulate_digest -- 42,hours=2

use sluice_policy::simulate::{DAY_NIGHT, Scene, Setup, simulate};
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let scene = Scene::parse(&std::env::args().nth(1).unwrap_or_else(|| "42,hours=2".to_owned()))?;
    let setup = Setup::read(&serde_json::from_str(DAY_NIGHT)?, Setup::START)?;
    let report = simulate(&setup, &scene.trace(&setup.config));
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
