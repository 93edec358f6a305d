//! A change of the filter's configuration by ECDS, as every change of a WasmPlugin is one, loses no slot and no charge.

use e2e::client::{Chat, send};
use e2e::document::{find_mut, text};
use e2e::folder::Folder;
use e2e::metrics::Metrics;
use e2e::paths;
use e2e::stack::{MODEL, Stack};
use e2e::tenant::Tenant;
use e2e::wait::wait_until;
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::HeaderMap;
use hyper::body::{Bytes, Frame};
use hyper::header::{HeaderName, HeaderValue};
use reqwest::Body;
use serde_json::{Value, json};
use std::fs;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::{JoinHandle, JoinSet};

/// Compiling the filter takes V8 a second; two cores under a compiler take longer.
const SLACK: Duration = Duration::from_secs(60);
const CALLERS: usize = 6;

/// Where Envoy finds the filter, and what stands there.
struct Filter {
    folder: Folder,
    config: Value,
}

impl Filter {
    fn path(&self) -> PathBuf {
        self.folder.path().join("filter.json")
    }

    /// Envoy takes a file over when it is moved to its place.
    fn put(&self, version: usize) {
        let resource = json!({
            "@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
            "name": "sluice", "typed_config": self.config,
        });
        let written = self
            .folder
            .write("filter.new", &text(&json!({"version_info": version.to_string(), "resources": [resource]})));
        fs::rename(written.unwrap(), self.path()).unwrap();
    }

    /// Each version has another setting, of no consequence.
    fn change_setting(&mut self, version: usize) {
        let holder = &mut self.config["config"]["configuration"]["value"];
        let mut setting: Value = serde_json::from_str(holder.as_str().unwrap()).unwrap();
        setting["verified_ttl_ms"] = json!(290_000 + version);
        *holder = json!(setting.to_string());
    }

    /// Each version is another module, as another release is, so that Envoy starts it in a VM of its own.
    fn change_code(&mut self, version: usize) {
        let mut code = fs::read(paths::filter_module().unwrap()).unwrap();
        // A section that has a name and says nothing.
        code.extend([0, 3, 1, b'x', u8::try_from(version).unwrap()]);
        let path = self.folder.path().join(format!("filter-{version}.wasm"));
        fs::write(&path, code).unwrap();
        find_mut(&mut self.config, &|value| value["filename"].is_string()).unwrap()["filename"] = json!(path);
    }
}

/// A stack that gets its filter from a file. In its queue one waits longer than this test waits for anything.
async fn start(name: &str, slots: u64, workers: u32) -> (Stack, Filter) {
    let folder = Folder::create(&format!("{name}-filter")).unwrap();
    let (sender, taken) = std::sync::mpsc::channel();
    let path = folder.path().join("filter.json");
    let by_file = move |bootstrap: &mut Value| {
        let filter =
            find_mut(bootstrap, &|value| value["name"] == "sluice" && !value["typed_config"].is_null()).unwrap();
        let config = filter.as_object_mut().unwrap().remove("typed_config").unwrap();
        filter["config_discovery"] = json!({
            "config_source": {"path_config_source": {"path": path}, "resource_api_version": "V3"},
            "type_urls": ["type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"],
        });
        let filter = Filter { folder, config };
        filter.put(0);
        sender.send(filter).unwrap();
    };
    let stack = Stack::builder(name)
        .capacity(slots)
        .tenant(Tenant::new("a"))
        .workers(workers)
        .sidecar_config(|config| config["queue"]["timeout_ms"] = json!(120_000))
        .envoy_config(by_file);
    (stack.start().await.unwrap(), taken.recv().unwrap())
}

/// Envoy has taken so many changes over, beside what it started with.
async fn wait_for_version(stack: &Stack, version: usize) {
    let has_changed = |metrics: &Metrics| {
        metrics.sum("envoy_extension_config_discovery_http_filter_sluice_config_reload", &[]) > version as u64
    };
    stack.envoy.wait_for_metrics("the filter is changed", SLACK, has_changed).await.unwrap();
}

/// Callers go on while the filter is changed, ten calls between one change and the next.
async fn nothing_is_lost(name: &str, changes: usize, change: fn(&mut Filter, usize)) {
    let (stack, mut filter) = start(name, 4, 2).await;
    let (served, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (client, served, stop) =
            (stack.client("a").unwrap().apart().unwrap(), Arc::clone(&served), Arc::clone(&stop));
        callers.spawn(async move {
            let chat = Chat::to(MODEL).behave(json!({"delay_ms": 20}));
            while !stop.load(Ordering::Relaxed) {
                let reply = client.chat(&chat).await.unwrap();
                assert_eq!(reply.status, 200, "{}", reply.summary());
                served.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let calls = |least: usize| {
        let served = &served;
        wait_until("calls are served", SLACK, move || async move { served.load(Ordering::Relaxed) >= least })
    };
    for version in 1..=changes {
        calls(10 * version).await.unwrap();
        change(&mut filter, version);
        filter.put(version);
        wait_for_version(&stack, version).await;
    }
    calls(served.load(Ordering::Relaxed) + 10).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    callers.join_all().await;
    let served = served.load(Ordering::Relaxed) as u64;
    // What is told again counts as `unknown_id`.
    let charged = |metrics: &Metrics| {
        let completed = [("outcome", "completed"), ("usage", "reported")];
        metrics.sum("sluice_settlements_total", &completed)
    };
    let all_are_charged = |metrics: &Metrics| charged(metrics) >= served;
    stack.operators().wait_for_metrics("every call is charged", SLACK, all_are_charged).await.unwrap();
    stack.operators().wait_until_idle(SLACK).await.unwrap();
    let metrics = stack.operators().metrics().await.unwrap();
    assert_eq!(charged(&metrics), served, "each of them once");
    assert_eq!(metrics.sum("sluice_worker_reports_total", &[("found", "lost_calls")]), 0);
}

/// `SLUICE_CONFIG_CHANGES=100` for a thousand calls over a hundred changes.
#[tokio::test(flavor = "multi_thread")]
async fn changes_of_the_configuration_under_load_lose_no_slot_and_no_charge() {
    let changes =
        std::env::var("SLUICE_CONFIG_CHANGES").map_or(10, |count| count.parse().expect("a number of changes"));
    nothing_is_lost("config-changes", changes, Filter::change_setting).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_the_module_under_load_lose_no_slot_and_no_charge() {
    nothing_is_lost("module-changes", 3, Filter::change_code).await;
}

/// A VM that traps tells nobody of its end. What waits in it loses its place, and what has started keeps its slot.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_wait_in_a_vm_that_traps_lose_their_place_and_the_next_one_gets_it() {
    let (stack, mut filter) = start("trap", 1, 1).await;
    let module = fs::read(paths::filter_module().unwrap()).unwrap();
    let path = filter.folder.path().join("traps.wasm");
    fs::write(&path, trapping(module, "proxy_on_request_trailers").unwrap()).unwrap();
    find_mut(&mut filter.config, &|value| value["filename"].is_string()).unwrap()["filename"] = json!(path);
    filter.put(1);
    wait_for_version(&stack, 1).await;

    let calls = stack.upstream.calls();
    calls.hold();
    let call = || {
        let client = stack.client("a").unwrap().apart().unwrap();
        tokio::spawn(async move { client.chat(&Chat::to(MODEL)).await })
    };
    let mut callers = vec![call()];
    wait_until("a call runs", SLACK, || async { calls.running() == 1 }).await.unwrap();
    callers.extend([call(), call()]);
    stack.operators().wait_for_queued(2, SLACK).await.unwrap();
    // By then the others of its Envoy know it too: it says so at its first tick, and reports at the next.
    let has_reported = |metrics: &Metrics| metrics.sum("sluice_worker_reports_total", &[]) > 0;
    stack.operators().wait_for_metrics("the instance has reported", SLACK, has_reported).await.unwrap();

    let body = Frame::data(Bytes::from_static(b"{"));
    let trailers =
        Frame::trailers(HeaderMap::from_iter([(HeaderName::from_static("x-end"), HeaderValue::from_static("1"))]));
    let frames = StreamBody::new(stream::iter([body, trailers].map(Ok::<_, io::Error>)));
    let fatal = stack.client("a").unwrap().over_http2().unwrap().chat_request(Body::wrap(frames));
    callers.push(tokio::spawn(async move { send(fatal).await }));
    stack.operators().wait_for_queued(0, SLACK).await.unwrap();
    let metrics = stack.operators().metrics().await.unwrap();
    assert_eq!(metrics.sum("sluice_running", &[]), 1, "nobody knows whether what has started still runs");

    // Envoy starts the filter anew for a call that comes; before, it answers by itself.
    let next = stack.client("a").unwrap();
    let next = tokio::spawn(async move { next.wait_until_served(&Chat::to(MODEL), SLACK).await });
    stack.operators().wait_for_queued(1, SLACK).await.unwrap();
    next.abort();
    callers.iter().for_each(JoinHandle::abort);
}

/// A module whose exported function of this name does nothing but trap.
fn trapping(mut module: Vec<u8>, name: &str) -> Option<Vec<u8>> {
    const IMPORTS: u8 = 2;
    const EXPORTS: u8 = 7;
    const CODE: u8 = 10;
    let imported = functions_imported(module.get(section(&module, IMPORTS)?)?)?;
    let exports = module.get(section(&module, EXPORTS)?)?;
    let mut named = vec![u8::try_from(name.len()).ok()?];
    named.extend(name.bytes());
    named.push(0);
    let at = exports.windows(named.len()).position(|window| window == named)?;
    let (function, _) = number(exports, at + named.len())?;
    let code = section(&module, CODE)?;
    let (_, mut at) = number(&module, code.start)?;
    for _ in imported..function {
        let (size, body) = number(&module, at)?;
        at = body + size;
    }
    let (size, body) = number(&module, at)?;
    // No locals, `unreachable`, as many `nop` as there is room for, and the end.
    let traps = module.get_mut(body..body + size)?;
    traps.fill(1);
    traps[..2].copy_from_slice(&[0, 0]);
    traps[size - 1] = 0x0b;
    Some(module)
}

/// Where the content of a section lies.
fn section(module: &[u8], wanted: u8) -> Option<Range<usize>> {
    let mut at = 8;
    loop {
        let id = *module.get(at)?;
        let (size, start) = number(module, at + 1)?;
        if id == wanted {
            return Some(start..start + size);
        }
        at = start + size;
    }
}

/// How many of the imports are functions; here all of them are.
fn functions_imported(imports: &[u8]) -> Option<usize> {
    number(imports, 0).map(|(count, _)| count)
}

/// An unsigned number in LEB128, and where it ends.
fn number(bytes: &[u8], mut at: usize) -> Option<(usize, usize)> {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = *bytes.get(at)?;
        value |= usize::from(byte & 0x7f) << shift;
        (at, shift) = (at + 1, shift + 7);
        if byte < 0x80 {
            return Some((value, at));
        }
    }
}
