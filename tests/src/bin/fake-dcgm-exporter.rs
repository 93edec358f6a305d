//! A DCGM exporter without GPUs: the page of a real one, with made-up load.
//!
//! The load is a slow wave for each GPU and depends on the seed and the time since the start only, so that a demo
//! looks alive and two runs look alike. One line of every page is no metric, because real pages have been seen
//! with such lines and a reader must bear them.

use anyhow::{Context, ensure};
use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use clap::Parser;
use sluice_policy::config::reader::is_name;
use std::f64::consts::TAU;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::process::parent_id;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

#[derive(Parser)]
#[command(about = "Serves the /metrics page of a made-up GPU node")]
struct Arguments {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The name of the node, which becomes the Hostname label.
    #[arg(long, default_value = "worker-01")]
    node: String,
    /// How many GPUs the node has.
    #[arg(long, default_value_t = 4)]
    gpus: u16,
    /// The namespaces whose pods hold the GPUs, in turns. Without any, every GPU is idle.
    #[arg(long, value_delimiter = ',')]
    namespaces: Vec<String>,
    /// What the waves start from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut names = arguments.namespaces.iter().chain([&arguments.node]);
    ensure!(names.all(|name| is_name(name)), "--node and --namespaces must be names, without spaces or quotes");
    let node = Node::new(&arguments);
    let listener =
        TcpListener::bind(arguments.listen).await.with_context(|| format!("listen on {}", arguments.listen))?;
    println!("ready http://{}", listener.local_addr()?);
    tokio::select! {
        served = axum::serve(listener, app(node)) => served?,
        () = orphaned() => {}
    }
    Ok(())
}

/// Ends with whoever started it, also when that was killed. Asked again and again rather than by a signal, which
/// would come when the *thread* that started it ends.
async fn orphaned() {
    let parent = parent_id();
    while parent_id() == parent {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn app(node: Node) -> Router {
    let start = Instant::now();
    let page = move |State(node): State<Arc<Node>>| async move {
        ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], node.page(start.elapsed().as_secs_f64()))
    };
    Router::new().route("/metrics", get(page)).with_state(Arc::new(node))
}

struct Node {
    gpus: Vec<Gpu>,
}

/// One GPU: its labels, and a wave that swings around `middle` by `swing`, in percent.
struct Gpu {
    labels: String,
    middle: f64,
    swing: f64,
    period_s: f64,
    phase: f64,
}

const MODEL: &str = "NVIDIA A100-SXM4-40GB";
const DRIVER: &str = "535.161.08";
const MEMORY_MIB: f64 = 40_536.0;
const IDLE_WATTS: f64 = 55.0;
const WATTS_PER_PERCENT: f64 = 3.3;

impl Node {
    fn new(arguments: &Arguments) -> Self {
        let mut numbers = Numbers(arguments.seed);
        let gpus = (0..arguments.gpus).map(|index| Gpu::new(arguments, index, &mut numbers)).collect();
        Self { gpus }
    }

    /// The page `at` seconds after the start.
    fn page(&self, at: f64) -> String {
        let mut page = String::new();
        for (index, family) in FAMILIES.iter().enumerate() {
            if index == FAMILIES.len() / 2 {
                page.push_str("made-up load, no GPU was harmed\n");
            }
            // Writing to a String cannot fail.
            let _ = writeln!(page, "# HELP {} {}\n# TYPE {0} {}", family.name, family.help, family.kind);
            for gpu in &self.gpus {
                let _ = writeln!(page, "{}{{{}}} {}", family.name, gpu.labels, (family.value)(gpu, at));
            }
        }
        page
    }
}

impl Gpu {
    fn new(arguments: &Arguments, index: u16, numbers: &mut Numbers) -> Self {
        let identity = numbers.next();
        let [middle, swing, period, phase] = [(); 4].map(|()| numbers.fraction());
        let holders = &arguments.namespaces;
        let holder = holders.get(usize::from(index) % holders.len().max(1));
        let (namespace, pod, container) = match holder {
            Some(name) => (name.as_str(), format!("{name}-llm-{index}"), "llm"),
            None => ("", String::new(), ""),
        };
        let labels = format!(
            "gpu=\"{index}\",UUID=\"GPU-{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}\",device=\"nvidia{index}\",\
             modelName=\"{MODEL}\",Hostname=\"{}\",DCGM_FI_DRIVER_VERSION=\"{DRIVER}\",\
             container=\"{container}\",namespace=\"{namespace}\",pod=\"{pod}\"",
            identity >> 32,
            identity >> 16 & 0xffff,
            identity >> 4 & 0xfff,
            index & 0xfff,
            identity & 0xffff_ffff_ffff,
            arguments.node,
        );
        let busy = if holder.is_some() { 1.0 } else { 0.0 };
        Self {
            labels,
            middle: busy * (45.0 + 25.0 * middle),
            swing: busy * (10.0 + 18.0 * swing),
            period_s: 60.0 + 120.0 * period,
            phase: TAU * phase,
        }
    }

    /// In percent; from 17 to 98 for a GPU that somebody holds.
    fn load(&self, at: f64) -> f64 {
        self.middle + self.swing * (TAU * at / self.period_s + self.phase).sin()
    }

    fn watts(&self, at: f64) -> f64 {
        IDLE_WATTS + WATTS_PER_PERCENT * self.load(at)
    }

    /// The integral of [`Gpu::watts`] since the start, so that this counter never goes back.
    fn joules(&self, at: f64) -> f64 {
        let turns = TAU / self.period_s;
        let wave = self.swing / turns * (self.phase.cos() - (turns * at + self.phase).cos());
        IDLE_WATTS * at + WATTS_PER_PERCENT * (self.middle * at + wave)
    }

    fn memory_used_mib(&self, at: f64) -> f64 {
        if self.middle > 0.0 { (MEMORY_MIB * (0.55 + self.load(at) / 300.0)).round() } else { 0.0 }
    }
}

/// The families of a default exporter, in its order and with its units. Ratios are fractions of 1, whatever the
/// help texts of older exporters said.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    value: fn(&Gpu, f64) -> String,
}

const fn family(name: &'static str, kind: &'static str, help: &'static str, value: fn(&Gpu, f64) -> String) -> Family {
    Family { name, kind, help, value }
}

#[rustfmt::skip]
const FAMILIES: [Family; 19] = [
    family("DCGM_FI_DEV_SM_CLOCK", "gauge", "SM clock frequency (in MHz).", |gpu, at| whole(210.0 + 12.0 * gpu.load(at))),
    family("DCGM_FI_DEV_MEM_CLOCK", "gauge", "Memory clock frequency (in MHz).", |_, _| whole(1215.0)),
    family("DCGM_FI_DEV_MEMORY_TEMP", "gauge", "Memory temperature (in C).", |gpu, at| whole(33.0 + 0.40 * gpu.load(at))),
    family("DCGM_FI_DEV_GPU_TEMP", "gauge", "GPU temperature (in C).", |gpu, at| whole(31.0 + 0.45 * gpu.load(at))),
    family("DCGM_FI_DEV_POWER_USAGE", "gauge", "Power draw (in W).", |gpu, at| precise(gpu.watts(at))),
    family("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "counter", "Total energy consumption since boot (in mJ).", |gpu, at| whole(1_000.0 * gpu.joules(at))),
    family("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", "counter", "Total number of PCIe retries.", |_, _| whole(0.0)),
    family("DCGM_FI_DEV_GPU_UTIL", "gauge", "GPU utilization (in %).", |gpu, at| whole(gpu.load(at))),
    family("DCGM_FI_DEV_MEM_COPY_UTIL", "gauge", "Memory utilization (in %).", |gpu, at| whole(0.6 * gpu.load(at))),
    family("DCGM_FI_DEV_ENC_UTIL", "gauge", "Encoder utilization (in %).", |_, _| whole(0.0)),
    family("DCGM_FI_DEV_DEC_UTIL", "gauge", "Decoder utilization (in %).", |_, _| whole(0.0)),
    family("DCGM_FI_DEV_XID_ERRORS", "gauge", "Value of the last XID error encountered.", |_, _| whole(0.0)),
    family("DCGM_FI_DEV_FB_FREE", "gauge", "Framebuffer memory free (in MiB).", |gpu, at| whole(MEMORY_MIB - gpu.memory_used_mib(at))),
    family("DCGM_FI_DEV_FB_USED", "gauge", "Framebuffer memory used (in MiB).", |gpu, at| whole(gpu.memory_used_mib(at))),
    family("DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", "counter", "Total number of NVLink bandwidth counters for all lanes.", |_, _| whole(0.0)),
    family("DCGM_FI_DEV_VGPU_LICENSE_STATUS", "gauge", "vGPU License status", |_, _| whole(0.0)),
    family("DCGM_FI_PROF_GR_ENGINE_ACTIVE", "gauge", "Ratio of time the graphics engine is active.", |gpu, at| precise(gpu.load(at) / 100.0)),
    family("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "gauge", "Ratio of cycles the tensor (HMMA) pipe is active.", |gpu, at| precise(gpu.load(at) / 160.0)),
    family("DCGM_FI_PROF_DRAM_ACTIVE", "gauge", "Ratio of cycles the device memory interface is active sending or receiving data.", |gpu, at| precise(gpu.load(at) / 130.0)),
];

/// As DCGM writes integers.
fn whole(value: f64) -> String {
    format!("{value:.0}")
}

/// As DCGM writes fractions.
fn precise(value: f64) -> String {
    format!("{value:.6}")
}

/// SplitMix64 (Steele, Lea and Flood 2014): well mixed from any seed, and the same on every machine.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to 1.
    fn fraction(&mut self) -> f64 {
        f64::from((self.next() >> 32) as u32) / f64::from(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(gpus: &str, namespaces: &str) -> Node {
        Node::new(&Arguments::parse_from(["fake", "--gpus", gpus, "--namespaces", namespaces]))
    }

    fn values(page: &str, family: &str) -> Vec<f64> {
        page.lines()
            .filter_map(|line| line.strip_prefix(family)?.strip_prefix('{')?.rsplit_once("} "))
            .map(|(_, value)| value.parse().unwrap())
            .collect()
    }

    #[test]
    fn the_same_seed_and_time_make_the_same_page_and_another_time_another_one() {
        assert_eq!(node("3", "a,b").page(12.5), node("3", "a,b").page(12.5));
        assert_ne!(node("3", "a,b").page(12.5), node("3", "a,b").page(40.0));
    }

    #[test]
    fn namespaces_hold_the_gpus_in_turns_and_nobodys_gpus_are_idle() {
        let page = node("3", "a,b").page(0.0);
        let loads: Vec<&str> = page.lines().filter(|line| line.starts_with("DCGM_FI_DEV_GPU_UTIL{")).collect();
        let holders = ["namespace=\"a\"", "namespace=\"b\"", "namespace=\"a\""];
        assert_eq!(loads.len(), holders.len());
        assert!(loads.iter().zip(holders).all(|(line, holder)| line.contains(holder)), "{loads:?}");
        let idle = Node::new(&Arguments::parse_from(["fake", "--gpus", "2"])).page(9.0);
        assert_eq!(values(&idle, "DCGM_FI_DEV_GPU_UTIL"), [0.0, 0.0]);
    }

    #[test]
    fn load_stays_in_range_and_energy_never_goes_back() {
        let node = node("8", "a");
        let mut before = vec![0.0; 8];
        for at in (0..2_000).map(f64::from) {
            let page = node.page(at);
            assert!(values(&page, "DCGM_FI_DEV_GPU_UTIL").iter().all(|load| (10.0..=100.0).contains(load)));
            let energy = values(&page, "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION");
            assert!(energy.iter().zip(&before).all(|(now, before)| now >= before), "{at}");
            before = energy;
        }
    }

    #[test]
    fn exactly_one_line_of_a_page_is_no_metric() {
        let page = node("2", "a").page(1.0);
        let odd = page.lines().filter(|line| !line.starts_with("DCGM_") && !line.starts_with("# ")).count();
        assert_eq!(odd, 1);
    }
}
