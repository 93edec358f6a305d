//! Keeps processors from falling asleep between two events: waking one takes longer than what is measured.

use anyhow::{Context, Result};
use std::process::{Child, Command, Stdio};

/// A loop on each processor at the scheduler's lowest class: it has what nobody else wants, and gives it back at once.
/// They end with this, and with its process.
pub(super) struct Awake {
    loops: Vec<Child>,
}

impl Awake {
    pub(super) fn keep() -> Result<Self> {
        let processors = std::thread::available_parallelism()?.get();
        let mut awake = Self { loops: Vec::new() };
        for _ in 0..processors {
            let mut command = Command::new("chrt");
            command.args(["--idle", "0", "sh", "-c", "while kill -0 $PPID; do :; done"]);
            let spawned = command.stdin(Stdio::null()).spawn();
            awake.loops.push(spawned.context("chrt, of util-linux, keeps the processors awake")?);
        }
        Ok(awake)
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        for child in &mut self.loops {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
