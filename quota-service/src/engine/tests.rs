use super::*;
use crate::home::embedded::EmbeddedHome;
use serde_json::{Value, json};
use sluice_policy::config::Config;
use sluice_policy::config::reader::read_document;
use sluice_policy::holder::{LeaseTerms, Replica};
use sluice_policy::units::Tokens;
use sluice_policy::wire::{KeyProof, Reason, UsageSource, WIRE_VERSION};

/// An engine with one slot, its embedded ledger, and a queue that gives up after `timeout_ms`.
struct Bench {
    engine: Arc<Engine>,
    tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
}

impl Bench {
    async fn new(timeout_ms: u64) -> Self {
        Self::leased(timeout_ms, 2_000).await
    }

    async fn leased(timeout_ms: u64, lease_ms: u64) -> Self {
        let pool = json!({"name": "smol", "models": ["m"], "capacity": {"concurrent": 1, "tokens_per_s": 1_000_000}});
        Self::of(config(timeout_ms, &pool), lease_ms).await
    }

    async fn of(config: Config, lease_ms: u64) -> Self {
        let lease = LeaseTerms { lease: Millis(lease_ms), longest_request: Millis(60_000), shared: false };
        let core = Admission::new(config, &Replica { id: "gate-0".into(), incarnation: 1, lease }, Millis::ZERO);
        let metrics = Arc::new(Metrics::new(false).unwrap());
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let usage = Arc::new(UsageRecords::new(&"gate-0".into(), 1, Arc::clone(&metrics)));
        let ledger = Some(Arc::new(EmbeddedHome::default()) as Arc<dyn Accounts>);
        let engine = Engine::start(core, ledger, metrics, usage, &stopped, &mut tasks);
        while !engine.is_ready() {
            tokio::task::yield_now().await;
        }
        Self { engine, tasks, stop }
    }

    async fn admit(&self, id: &str) -> AdmissionReply {
        self.engine.admit(&"a".into(), None, &request(id)).await.unwrap()
    }

    fn end(&self, id: &str) {
        self.end_as(id, Outcome::Completed);
    }

    fn end_as(&self, id: &str, outcome: Outcome) {
        let usage = Usage { source: UsageSource::Reported, output: Tokens(3), ..Usage::default() };
        let ended = Settlement { id: id.into(), outcome, usage, charge_to: None, timing: None, abandoned: false };
        self.engine.settle(&[ended]);
    }

    fn queued(&self) -> usize {
        self.engine.totals().pools.iter().flat_map(|pool| pool.depths).sum()
    }

    async fn until_queued(&self, depth: usize) {
        while self.queued() != depth {
            tokio::task::yield_now().await;
        }
    }
}

fn config(timeout_ms: u64, pool: &Value) -> Config {
    let document = json!({"queue": {"timeout_ms": timeout_ms}, "pools": [pool], "tenants": [{"id": "a"}]});
    read_document(&document, Config::read).unwrap()
}

/// A pool's number on a page of metrics, or the sum of a counter's series.
fn shown(page: &str, name: &str) -> u64 {
    let series = page.lines().filter(|line| line.starts_with(&format!("{name}{{")));
    series.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

fn request(id: &str) -> AdmissionRequest {
    AdmissionRequest {
        version: WIRE_VERSION,
        id: id.into(),
        key: KeyProof { id: None, digest: String::new() },
        model: Some("m".to_owned()),
        pool: None,
        input_tokens: Tokens(10),
        max_tokens: Some(Tokens(20)),
        prompts: 1,
        sequences: 1,
        stream: false,
        body_bytes: 100,
        priority: None,
        deadline_ms: None,
    }
}

fn reason(reply: &AdmissionReply) -> Option<Reason> {
    match reply {
        AdmissionReply::Admitted(_) => None,
        AdmissionReply::Rejected(refusal) => Some(refusal.reason),
    }
}

#[tokio::test]
async fn a_held_caller_is_woken_by_the_end_of_another_call() {
    let bench = Bench::new(60_000).await;
    assert_eq!(reason(&bench.admit("x-1").await), None);
    let (second, ()) = tokio::join!(bench.admit("x-2"), async {
        bench.until_queued(1).await;
        bench.end("x-1");
    });
    assert_eq!(reason(&second), None);
}

#[tokio::test]
async fn a_caller_who_leaves_frees_its_place() {
    let bench = Bench::new(60_000).await;
    bench.admit("x-1").await;
    tokio::select! {
        _ = bench.admit("x-2") => panic!("there is no room for it"),
        () = bench.until_queued(1) => {}
    }
    assert_eq!(bench.queued(), 0);
    bench.end("x-1");
    assert_eq!(reason(&bench.admit("x-3").await), None);
}

#[tokio::test]
async fn who_comes_first_after_this_process_stood_still_is_served() {
    let bench = Bench::leased(60_000, 100).await;
    bench.admit("x-1").await;
    bench.end("x-1");
    // Nobody else runs meanwhile, not even the timer.
    let later = bench.engine.now().plus(Millis(150));
    while bench.engine.now() < later {
        std::thread::yield_now();
    }
    assert_eq!(reason(&bench.admit("x-2").await), None);
}

/// A timer that wakes itself would take a whole core, and with it the lock.
#[tokio::test]
async fn waiting_costs_nothing_and_ends_at_the_timeout() {
    let bench = Bench::new(300).await;
    bench.admit("x-1").await;
    assert_eq!(reason(&bench.admit("x-2").await), Some(Reason::QueueTimeout));
    let pumped = bench.engine.lock().pumped;
    assert!(pumped < 50, "the core was pumped {pumped} times in 0.3 s");
}

#[tokio::test]
async fn shutdown_answers_everyone_and_gives_the_lease_back() {
    let mut bench = Bench::new(60_000).await;
    bench.admit("x-1").await;
    let (second, ()) = tokio::join!(bench.admit("x-2"), async {
        bench.until_queued(1).await;
        bench.engine.drain();
    });
    assert_eq!(reason(&second), Some(Reason::ShuttingDown));
    bench.end("x-1");
    bench.engine.all_settled().await;
    bench.stop.send_replace(true);
    while bench.tasks.join_next().await.is_some() {}
}

#[tokio::test]
async fn a_worker_that_answers_for_a_call_no_more_frees_its_slot_and_its_callers_pay_what_they_reserved() {
    let bench = Bench::new(60_000).await;
    assert_eq!(reason(&bench.admit("w-1").await), None);
    let report = |minted, numbers: &[u64]| LiveIds { minted, numbers: numbers.iter().copied().collect(), seal: None };
    bench.engine.hear_of_live("w", &report(1, &[1]));
    bench.engine.hear_of_live("w", &report(0, &[]));
    bench.engine.hear_of_live("v", &report(9, &[]));
    let (second, ()) = tokio::join!(bench.admit("w-2"), async {
        bench.until_queued(1).await;
        bench.engine.hear_of_live("w", &report(2, &[2]));
    });
    assert_eq!(reason(&second), None, "the first one's slot is free");
    let served: u64 = bench.engine.costs().values().map(|tokens| tokens.0).sum();
    assert_eq!(served, 30);
}

#[tokio::test]
async fn a_page_that_counts_an_abandoned_call_shows_its_orphan() {
    let calls = 500;
    let pool = json!({
        "name": "smol", "models": ["m"], "capacity": {"concurrent": calls}, "on_abort": {"grace_ms": 60_000},
    });
    let bench = Bench::of(config(60_000, &pool), 2_000).await;
    for call in 0..calls {
        assert_eq!(reason(&bench.admit(&format!("x-{call}")).await), None);
    }
    std::thread::scope(|scope| {
        let pages = scope.spawn(|| {
            loop {
                let page = bench.engine.metrics_page().unwrap();
                let (settled, orphans) = (shown(&page, "sluice_settlements_total"), shown(&page, "sluice_orphans"));
                assert_eq!(settled, orphans);
                if settled == calls {
                    break;
                }
            }
        });
        (0..calls).for_each(|call| bench.end_as(&format!("x-{call}"), Outcome::Aborted));
        pages.join().unwrap();
    });
}

#[tokio::test]
async fn the_last_call_of_a_pool_that_a_reload_took_away_is_seen_to_end() {
    let bench = Bench::new(60_000).await;
    bench.admit("x-1").await;
    let other = json!({"name": "other", "models": ["n"], "capacity": {"concurrent": 1}});
    bench.engine.configure(config(60_000, &other), UnixMillis(1), |_, _| ());
    let running = || shown(&bench.engine.metrics_page().unwrap(), "sluice_running");
    assert_eq!(running(), 1);
    bench.end("x-1");
    assert_eq!(running(), 0);
}
