//! `bench growth`: what a call costs the service as pools and tenants are added to its configuration, how large its page of
//! metrics grows, and what an idle tenant takes. The service is driven over its socket, without Envoy.

use super::{Figure, figure};
use anyhow::{Context, Result, ensure};
use e2e::fleet::{Direct, Fleet};
use e2e::stack::{MODEL, POOL};
use e2e::tenant::Tenant;
use futures_util::stream::{self, StreamExt};
use serde_json::{Value, json};
use std::fs;
use std::time::{Duration, Instant};

/// Callers at once, each of which makes its next call when the one before has ended.
const ABREAST: usize = 8;
/// The page that operators scrape at the largest size that is promised.
const PAGE: Size = Size { pools: 10, models: 2, tenants: 100_000 };
/// The kernel's clock ticks, as it reports them to programs.
const TICKS_PER_S: f64 = 100.0;

/// How large a configuration is.
#[derive(Clone, Copy)]
struct Size {
    pools: usize,
    /// Of each pool.
    models: usize,
    tenants: usize,
}

const ONE: Size = Size { pools: 1, models: 1, tenants: 1 };

/// What is measured, and for how long.
struct Plan {
    pools: &'static [usize],
    tenants: &'static [usize],
    repeats: usize,
    window: Duration,
    /// Tenants that call before the page is read; all of them in a full run.
    callers: usize,
}

impl Plan {
    const FULL: Self = Self {
        pools: &[1, 10, 100, 1_000],
        tenants: &[1, 100, 10_000, 100_000],
        repeats: 5,
        window: Duration::from_secs(3),
        callers: PAGE.tenants,
    };
    /// The ends of both curves.
    const QUICK: Self = Self {
        pools: &[1, 1_000],
        tenants: &[100_000],
        repeats: 3,
        window: Duration::from_millis(600),
        callers: 3_000,
    };
}

pub(super) const FIGURES: &[&str] =
    &["service_us_per_call", "rss_bytes_per_idle_tenant", "metrics_page_bytes", "metrics_page_ms"];

pub(super) async fn measure(quick: bool) -> Result<Vec<Figure>> {
    let plan = if quick { Plan::QUICK } else { Plan::FULL };
    let mut figures = Vec::new();
    for pools in plan.pools {
        let costs = Service::start(Size { pools: *pools, ..ONE }).await?.costs(&plan).await?;
        figures.push(Figure { pools: Some(*pools), ..figure("service_us_per_call", "us", costs) });
    }
    let mut idle = Vec::new();
    for tenants in plan.tenants {
        let service = Service::start(Size { tenants: *tenants, ..ONE }).await?;
        idle.push((*tenants, service.fleet.gates[0].sidecar.resident_bytes()?));
        let costs = service.costs(&plan).await?;
        figures.push(Figure { tenants: Some(*tenants), ..figure("service_us_per_call", "us", costs) });
    }
    figures.extend(of_an_idle_tenant(&idle).await?);
    figures.extend(Service::start(PAGE).await?.page(plan.callers).await?);
    Ok(figures)
}

/// What the most tenants take beside a service that has one, shared among them.
async fn of_an_idle_tenant(resident: &[(usize, u64)]) -> Result<Option<Figure>> {
    let alone = Service::start(ONE).await?.fleet.gates[0].sidecar.resident_bytes()?;
    let Some((tenants, bytes)) = resident.last() else { return Ok(None) };
    let each = bytes.saturating_sub(alone) as f64 / *tenants as f64;
    Ok(Some(Figure { tenants: Some(*tenants), ..figure("rss_bytes_per_idle_tenant", "bytes", vec![each]) }))
}

/// One sidecar with a ledger of its own.
struct Service {
    fleet: Fleet,
    size: Size,
}

impl Service {
    async fn start(size: Size) -> Result<Self> {
        let Size { pools, tenants, .. } = size;
        println!("a service with {pools} pools and {tenants} tenants");
        let fleet = Fleet::builder("bench-growth")
            .replicas(1)
            .without_envoy()
            .capacity(1_000)
            .lease(Duration::from_secs(2))
            .longest_request(Duration::from_secs(600))
            .tenant(Tenant::new("first"))
            .copies(tenants - 1)
            .sidecar_config(move |_, config| add_pools(config, size))
            .start()
            .await?;
        Ok(Self { fleet, size })
    }

    /// Microseconds of the process's own time for each of many calls, once for every repeat.
    async fn costs(&self, plan: &Plan) -> Result<Vec<f64>> {
        let first = self.fleet.direct(0, "first")?;
        let mut made = 0;
        // Connections are opened, and memory is touched, before anything counts.
        made += self.call_for(&first, made, plan.window / 3).await?;
        let mut costs = Vec::new();
        for _ in 0..plan.repeats {
            let before = self.cpu_s()?;
            let calls = self.call_for(&first, made, plan.window).await?;
            made += calls;
            costs.push((self.cpu_s()? - before) * 1e6 / calls as f64);
        }
        Ok(costs)
    }

    /// Calls of the tenants in turn, to the pools in turn. Gives how many there were.
    async fn call_for(&self, first: &Direct, made: usize, window: Duration) -> Result<usize> {
        let ends = Instant::now() + window;
        let numbers = (made..).take_while(|_| Instant::now() < ends);
        let calls = stream::iter(numbers).map(|number| self.call(first, number)).buffer_unordered(ABREAST);
        let outcomes: Vec<Result<()>> = calls.collect().await;
        let count = outcomes.len();
        outcomes.into_iter().collect::<Result<Vec<()>>>()?;
        ensure!(count > 0, "no call was made");
        Ok(count)
    }

    async fn call(&self, first: &Direct, number: usize) -> Result<()> {
        let caller = match number % self.size.tenants {
            0 => first.clone(),
            tenant => first.copy(tenant - 1),
        };
        let models = self.size.pools * self.size.models;
        let ran = caller.to_model(&model_name(number % models)).call(Duration::ZERO).await?;
        ensure!(ran, "call {number} was refused");
        Ok(())
    }

    /// The page of metrics once so many tenants have called, and how long it takes.
    async fn page(&self, callers: usize) -> Result<Vec<Figure>> {
        let first = self.fleet.direct(0, "first")?;
        println!("a call of each of {callers} tenants");
        let calls = stream::iter(0..callers).map(|number| self.call(&first, number)).buffer_unordered(ABREAST);
        let outcomes: Vec<Result<()>> = calls.collect().await;
        outcomes.into_iter().collect::<Result<Vec<()>>>()?;
        let url = format!("{}/metrics", self.fleet.gates[0].operators().base());
        let (mut bytes, mut spans) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            let begun = Instant::now();
            let page = reqwest::get(&url).await?.error_for_status()?.bytes().await?;
            spans.push(begun.elapsed().as_secs_f64() * 1e3);
            bytes.push(page.len() as f64);
        }
        let of_size = |figure| Figure { tenants: Some(self.size.tenants), pools: Some(self.size.pools), ..figure };
        Ok(vec![of_size(figure("metrics_page_bytes", "bytes", bytes)), of_size(figure("metrics_page_ms", "ms", spans))])
    }

    /// Seconds of processor time that the service has taken.
    fn cpu_s(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.fleet.gates[0].sidecar.pid()))?;
        // Behind the name, which may hold anything: state, ten numbers, then the ticks as a program and as the kernel for it.
        let (_, fields) = stat.rsplit_once(')').context("no name in /proc")?;
        let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
        Ok(ticks.sum::<Result<f64, _>>()? / TICKS_PER_S)
    }
}

/// The first model is the one that every test calls.
fn model_name(number: usize) -> String {
    if number == 0 { MODEL.to_owned() } else { format!("model-{number}") }
}

fn add_pools(config: &mut Value, size: Size) {
    let shipped = config["pools"][0].clone();
    let pools = (0..size.pools).map(|number| {
        let mut pool = shipped.clone();
        pool["name"] = json!(if number == 0 { POOL.to_owned() } else { format!("pool-{number}") });
        pool["models"] = (0..size.models).map(|model| json!(model_name(number * size.models + model))).collect();
        pool
    });
    config["pools"] = pools.collect();
}
