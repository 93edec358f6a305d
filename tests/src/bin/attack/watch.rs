//! What processes take, as the kernel counts it.

use std::fs;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const EVERY: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Peaks {
    pub(super) envoy_mb: f64,
    pub(super) sidecar_mb: f64,
    pub(super) samples: usize,
}

pub(super) struct Watch {
    task: JoinHandle<Peaks>,
    stop: oneshot::Sender<()>,
}

impl Watch {
    pub(super) fn begin(envoy: u32, sidecar: u32) -> Self {
        let (stop, stopped) = oneshot::channel();
        Self { task: tokio::spawn(watch(envoy, sidecar, stopped)), stop }
    }

    pub(super) async fn end(self) -> Peaks {
        let _ = self.stop.send(());
        self.task.await.unwrap_or_default()
    }
}

async fn watch(envoy: u32, sidecar: u32, mut stopped: oneshot::Receiver<()>) -> Peaks {
    let mut peaks = Peaks::default();
    loop {
        peaks.envoy_mb = peaks.envoy_mb.max(memory_mb(envoy));
        peaks.sidecar_mb = peaks.sidecar_mb.max(memory_mb(sidecar));
        peaks.samples += 1;
        tokio::select! {
            _ = &mut stopped => return peaks,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// Its resident memory; 0 where it is gone.
fn memory_mb(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) * 1_024.0 / 1e6
}

/// Seconds of processor time that its threads have taken which still run, to the nanosecond: clock ticks are too coarse to
/// steer by.
pub(super) fn cpu_of(pid: u32) -> f64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let nanoseconds = threads.filter_map(|thread| {
        let taken = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        taken.split_whitespace().next()?.parse::<f64>().ok()
    });
    nanoseconds.sum::<f64>() / 1e9
}
