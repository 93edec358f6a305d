use super::*;
use axum::Router;
use axum::body::Body;
use axum::routing::get;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::net::TcpListener;

const GOOD: &str = "hello\nDCGM_FI_DEV_GPU_UTIL{gpu=\"0\",namespace=\"ns-a\"} 40\n";

async fn serve(app: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    format!("http://{address}")
}

async fn exporters() -> String {
    let app = Router::new()
        .route("/good", get(async || GOOD))
        .route("/empty", get(async || ""))
        .route("/login", get(async || "<html>\nplease log in\n</html>"))
        .route("/other", get(async || "# TYPE node_load1 gauge\nnode_load1 0.5\n"))
        .route("/renamed", get(async || "DCGM_FI_DEV_GPU_LOAD{gpu=\"0\"} 40\n"))
        .route("/comments", get(async || "# HELP DCGM_FI_DEV_GPU_UTIL Load.\n"))
        .route("/broken", get(async || StatusCode::INTERNAL_SERVER_ERROR))
        .route("/huge", get(async || Body::from(vec![b'\n'; MAX_BODY_BYTES + 1])))
        .route("/slow", get(async || tokio::time::sleep(TIMEOUT * 10).await));
    serve(app).await
}

fn scraper(view: Arc<GpuView>) -> Scraper {
    let tenants = [("ns-a".to_owned(), "dept-a".to_owned())].into();
    Scraper { client: client(), turns: Semaphore::new(MAX_CONCURRENT), tenants, view }
}

fn settings(url: &str) -> GpuSettings {
    let exporter = Exporter { node: "n".to_owned(), url: url.parse().unwrap() };
    GpuSettings { interval: Duration::from_millis(100), exporters: vec![exporter] }
}

#[tokio::test]
async fn every_way_a_scrape_can_end_has_its_name() {
    let base = exporters().await;
    let scraper = scraper(GpuView::new(&GpuSettings::default()));
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (url, expected) in [
        (format!("{base}/good"), ScrapeResult::Ok),
        (format!("{base}/empty"), ScrapeResult::Ok),
        (format!("{base}/login"), ScrapeResult::NotMetrics),
        (format!("{base}/other"), ScrapeResult::NotMetrics),
        (format!("{base}/renamed"), ScrapeResult::NotMetrics),
        (format!("{base}/comments"), ScrapeResult::Ok),
        (format!("{base}/broken"), ScrapeResult::BadStatus),
        (format!("{base}/nowhere"), ScrapeResult::BadStatus),
        (format!("{base}/huge"), ScrapeResult::TooLarge),
        (format!("{base}/slow"), ScrapeResult::Timeout),
        (format!("http://{closed}/"), ScrapeResult::Unreachable),
    ] {
        let outcome = scraper.scrape(&url.parse().unwrap()).await;
        let found = outcome.as_ref().map_or_else(ScrapeError::result, |_| ScrapeResult::Ok);
        assert_eq!(found, expected, "{url}: {outcome:?}");
    }
}

#[tokio::test]
async fn it_scrapes_until_it_is_told_to_stop() {
    let settings = settings(&format!("{}/good", exporters().await));
    let view = GpuView::new(&settings);
    let (stop, stopped) = watch::channel(false);
    let tenants = [("ns-a".to_owned(), "dept-a".to_owned())].into();
    let task = tokio::spawn(run(settings, tenants, Arc::clone(&view), stopped));
    let snapshot = loop {
        let snapshot = view.snapshot();
        if snapshot.nodes[0].scrapes[&ScrapeResult::Ok] >= 2 {
            break snapshot;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(snapshot.devices[0].tenant, "dept-a");
    assert!(snapshot.nodes[0].bad_lines >= 2);
    stop.send(true).unwrap();
    timeout(Duration::from_secs(10), task).await.unwrap().unwrap();
}

#[tokio::test]
async fn it_stops_when_nobody_can_tell_it_to_anymore() {
    let settings = settings("http://127.0.0.1:9/metrics");
    let view = GpuView::new(&settings);
    let (stop, stopped) = watch::channel(false);
    drop(stop);
    timeout(Duration::from_secs(10), run(settings, BTreeMap::new(), view, stopped)).await.unwrap();
}

#[tokio::test]
async fn an_exporter_that_fails_and_recovers_is_counted_both_ways() {
    let calls = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&calls);
    let flaky = move || {
        let call = counted.fetch_add(1, Ordering::Relaxed);
        async move { if call == 0 { Err(StatusCode::BAD_GATEWAY) } else { Ok(GOOD) } }
    };
    let settings = settings(&serve(Router::new().route("/", get(flaky))).await);
    let view = GpuView::new(&settings);
    let (_stop, stopped) = watch::channel(false);
    tokio::spawn(run(settings, BTreeMap::new(), Arc::clone(&view), stopped));
    loop {
        let status = view.snapshot().nodes.remove(0);
        if status.scrapes[&ScrapeResult::Ok] >= 1 {
            assert_eq!(status.scrapes[&ScrapeResult::BadStatus], 1);
            break;
        }
        tokio::task::yield_now().await;
    }
}
