//! The scheduler decides alike wherever it runs: one seed gives one report, bit for bit, natively and as wasm32.

use e2e::paths::{root, target, tool};
use sluice_policy::simulate::{DAY_NIGHT, Scene, Setup, simulate};
use std::path::{Path, PathBuf};
use std::process::Command;

const WASM: &str = "wasm32-wasip1";
const EXAMPLE: &str = "simulate_digest";
/// Both pools are full most of the time, so every part of the queue takes part in the result.
const SCENES: [&str; 2] = ["42,calls=60000,load=150", "7,calls=20000,load=60"];

/// Runs a WASI program and passes its output on.
const RUN: &str = r"
import sys, wasmtime
engine = wasmtime.Engine()
linker = wasmtime.Linker(engine)
linker.define_wasi()
wasi = wasmtime.WasiConfig()
wasi.argv = sys.argv[1:]
wasi.inherit_stdout()
wasi.inherit_stderr()
store = wasmtime.Store(engine)
store.set_wasi(wasi)
instance = linker.instantiate(store, wasmtime.Module.from_file(engine, sys.argv[1]))
try:
    instance.exports(store)['_start'](store)
except wasmtime.ExitTrap as end:
    sys.exit(end.code)
";

#[test]
fn a_simulation_gives_the_same_report_natively_and_in_wasm32() {
    let module = build();
    for scene in SCENES {
        let (native, wasm) = (native(scene), run(&module, scene));
        assert!(native.contains("\"digest\""), "{native}");
        assert_eq!(native, wasm.trim_end(), "{scene}");
    }
}

fn native(scene: &str) -> String {
    let setup = Setup::read(&serde_json::from_str(DAY_NIGHT).unwrap(), Setup::START).unwrap();
    let trace = Scene::parse(scene).unwrap().trace(&setup.config);
    serde_json::to_string(&simulate(&setup, &trace)).unwrap()
}

fn build() -> PathBuf {
    let target = target().unwrap();
    let built = Command::new(env!("CARGO"))
        .current_dir(root())
        .env("CARGO_TARGET_DIR", &target)
        .args([
            "build",
            "--locked",
            "--quiet",
            "--release",
            "--target",
            WASM,
            "-p",
            "sluice-policy",
            "--example",
            EXAMPLE,
        ])
        .status()
        .unwrap();
    assert!(built.success(), "cargo could not build the example for {WASM}");
    target.join(WASM).join("release/examples").join(format!("{EXAMPLE}.wasm"))
}

fn run(module: &Path, scene: &str) -> String {
    let python = tool("venv/bin/python").unwrap();
    let ran = Command::new(python).args(["-c", RUN]).arg(module).arg(scene).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).unwrap()
}
