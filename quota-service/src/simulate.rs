//! `quota-service simulate`: what a configuration would do with a trace of calls, and how another one compares.

use crate::settings::Settings;
use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};
use sluice_policy::schedule::UnixMillis;
use sluice_policy::simulate::{DAY_NIGHT, Report, Scene, Setup, Trace, simulate, table};
use std::fs;
use std::path::{Path, PathBuf};

/// Arguments of `quota-service simulate`.
#[derive(Args)]
pub struct SimulateArgs {
    /// Calls as JSON lines; docs/QUEUE.md lists the fields.
    #[arg(long, conflicts_with = "generate", required_unless_present = "generate")]
    trace: Option<PathBuf>,
    /// Make calls up instead: SEED[,hours=24][,load=120][,calls=N], load in percent of the slots at the busiest hour.
    #[arg(long, value_name = "SCENE", value_parser = parse_scene)]
    generate: Option<Scene>,
    /// A configuration of the service, or one with only what decides; twice to compare two. Without it: a company
    /// whose departments go first by day and whose customers go first by night.
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// When the trace begins, for time rules: 2026-01-05T00:00:00+08:00.
    #[arg(long, value_name = "INSTANT", value_parser = parse_start)]
    start: Option<UnixMillis>,
    /// Print the reports as JSON.
    #[arg(long)]
    json: bool,
    /// Write the trace to a file as well, as JSON lines.
    #[arg(long, value_name = "FILE")]
    keep_trace: Option<PathBuf>,
}

/// Simulates, and prints what came of it.
///
/// # Errors
/// Every error in a configuration (with its path) or in the trace (with its line).
pub fn run(args: &SimulateArgs) -> anyhow::Result<()> {
    print!("{}", simulated(args)?);
    Ok(())
}

fn simulated(args: &SimulateArgs) -> anyhow::Result<String> {
    anyhow::ensure!(args.config.len() <= 2, "--config may be given twice, to compare two, and not more often");
    let setups = setups(args)?;
    let trace = trace(args, &setups)?;
    if let Some(file) = &args.keep_trace {
        fs::write(file, trace.to_json_lines()).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let reports: Vec<(&str, Report)> =
        setups.iter().map(|(name, setup)| (name.as_str(), simulate(setup, &trace))).collect();
    if args.json {
        let documents: Vec<Value> =
            reports.iter().map(|(name, report)| json!({"config": name, "report": report})).collect();
        return Ok(serde_json::to_string_pretty(&documents)? + "\n");
    }
    let beside: Vec<(&str, &Report)> = reports.iter().map(|(name, report)| (*name, report)).collect();
    Ok(table(&beside))
}

/// Each configuration under the name that it was given by.
fn setups(args: &SimulateArgs) -> anyhow::Result<Vec<(String, Setup)>> {
    let start = args.start.unwrap_or(Setup::START);
    if args.config.is_empty() {
        let setup = Setup::read(&serde_json::from_str(DAY_NIGHT)?, start)?;
        return Ok(vec![("day and night".to_owned(), setup)]);
    }
    args.config.iter().map(|file| Ok((file.display().to_string(), load(file, start)?))).collect()
}

/// Reads a whole configuration of the service, or one that has only what the simulator needs.
fn load(file: &Path, start: UnixMillis) -> anyhow::Result<Setup> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let document: Value =
        serde_saphyr::from_str(&text).with_context(|| format!("{} is not sound YAML", file.display()))?;
    if document.get("listeners").is_some() || document.get("version").is_some() {
        let config = Settings::load(file)?.policy;
        return Ok(Setup { config, start });
    }
    Ok(Setup::read(&document, start)?)
}

fn trace(args: &SimulateArgs, setups: &[(String, Setup)]) -> anyhow::Result<Trace> {
    let Some(file) = &args.trace else {
        // The scene is made for the first configuration, and both get the same calls.
        let (_, first) = setups.first().context("there is no configuration")?;
        return Ok(args.generate.clone().unwrap_or_default().trace(&first.config));
    };
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Trace::parse(&text).with_context(|| format!("{} is refused", file.display()))
}

fn parse_scene(text: &str) -> Result<Scene, String> {
    Scene::parse(text)
}

fn parse_start(text: &str) -> Result<UnixMillis, String> {
    Setup::parse_start(text).ok_or_else(|| "must be an instant like 2026-01-05T00:00:00+08:00".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> SimulateArgs {
        let generate = Some(Scene { most_calls: 3_000, ..Scene::default() });
        SimulateArgs { trace: None, generate, config: Vec::new(), start: None, json: false, keep_trace: None }
    }

    #[test]
    fn a_trace_that_was_kept_gives_the_same_report_again() {
        let kept = std::env::temp_dir().join(format!("sluice-trace-{}.jsonl", std::process::id()));
        let first = simulated(&SimulateArgs { keep_trace: Some(kept.clone()), ..args() }).unwrap();
        let again = simulated(&SimulateArgs { trace: Some(kept.clone()), generate: None, ..args() }).unwrap();
        assert_eq!(first, again);
        fs::remove_file(kept).unwrap();
    }

    #[test]
    fn two_configurations_stand_side_by_side() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policy/scenes/day-night.json");
        let text = simulated(&SimulateArgs { config: vec![folder.clone(), folder], ..args() }).unwrap();
        let total = text.lines().find(|line| line.starts_with("all")).unwrap();
        assert!(total.contains(" | "), "{total}");
    }

    #[test]
    fn wrong_lines_are_told_by_their_number() {
        let file = std::env::temp_dir().join(format!("sluice-wrong-{}.jsonl", std::process::id()));
        fs::write(&file, "# a comment\n{}\n\n{\"at_ms\": -1}\n").unwrap();
        let error = simulated(&SimulateArgs { trace: Some(file.clone()), generate: None, ..args() }).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("line 2: missing field") && text.contains("line 4: "), "{text}");
        fs::remove_file(file).unwrap();
    }
}
