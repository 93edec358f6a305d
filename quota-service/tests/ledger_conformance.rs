//! The same calls have the same answers in the embedded ledger's function and in the Lua script, on a real Redis.

// Helpers of a test are tests too, but the lint knows only functions marked as such.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use quota_service::ledger::link::{Link, RedisSecrets, RedisSettings};
use quota_service::ledger::{Account, Ledger, RedisLedger};
use sluice_policy::ledger::{AccountLedger, SyncReply, SyncRequest};
use sluice_policy::units::{HolderId, Millis};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A Redis of this test's own, on a unix socket; it dies with the test.
struct Redis {
    process: Child,
    folder: PathBuf,
}

impl Redis {
    fn start(name: &str) -> Self {
        let binary = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin/redis-server");
        assert!(binary.exists(), "there is no {}: run `./justw setup` first", binary.display());
        // A socket's path has room for about a hundred characters, which a checkout's own may exceed.
        let folder = std::env::temp_dir().join(format!("sluice-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let process = Command::new(binary)
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket", "redis.sock"])
            .current_dir(&folder)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let redis = Self { process, folder };
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::os::unix::net::UnixStream::connect(redis.folder.join("redis.sock")).is_err() {
            assert!(Instant::now() < deadline, "Redis did not start");
            std::thread::yield_now();
        }
        redis
    }

    fn url(&self) -> String {
        format!("redis+unix://{}", self.folder.join("redis.sock").display())
    }

    fn ledger(&self) -> RedisLedger {
        let settings = RedisSettings::from_url(&self.url()).unwrap();
        RedisLedger::new(Link::new(&settings, &RedisSecrets::default()).unwrap())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn call() -> impl Strategy<Value = SyncRequest> {
    let names = prop::sample::subsequence(vec!["a", "b"], 0..=2);
    // A lease of 0 ms has ended by the next call, so expiry is exercised without waiting.
    let terms = (prop_oneof![Just(0_u64), Just(60_000)], prop_oneof![Just(0_u64), Just(1), Just(60_000)]);
    ((0_u8..3, 0_u64..3, 0_u64..6), (0_u32..12, 0_u32..12, 0_u32..12), terms, names, any::<i32>()).prop_map(
        |((holder, incarnation, seq), (keep, want, capacity), (lease, longest), names, level)| SyncRequest {
            holder: HolderId::from(format!("gate-{holder}")),
            // As large as in real life: milliseconds since 1970.
            incarnation: 1_790_000_000_000 + incarnation,
            seq,
            keep,
            want,
            capacity,
            lease: Millis(lease),
            longest_request: Millis(longest),
            spent: 3_000_000_000_000_000 + seq,
            levels: names.into_iter().map(|name| (name.to_owned(), i64::from(level))).collect(),
        },
    )
}

#[test]
fn the_script_answers_as_the_pure_ledger_does() {
    let redis = Redis::start("conformance");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ledger = runtime.block_on(async { redis.ledger() });
    let traces = Cell::new(0);
    let config = Config { cases: 200, rng_seed: RngSeed::Fixed(2), failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&prop::collection::vec(call(), 1..40), |calls| {
            traces.set(traces.get() + 1);
            let account = Account::Pool(format!("trace-{}", traces.get()).as_str().into());
            let mut pure = AccountLedger::default();
            for request in calls {
                let answer = runtime.block_on(ledger.sync(&account, &request));
                let answer = answer.map_err(|error| TestCaseError::fail(error.to_string()))?;
                let expected: SyncReply = pure.sync(&request, answer.now);
                prop_assert_eq!(&answer, &expected, "asked {:?}", request);
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_flushed_script_is_loaded_again() {
    let redis = Redis::start("flush");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let ledger = redis.ledger();
        let account = Account::Pool("smol".into());
        let mut request = SyncRequest {
            holder: "gate-0".into(),
            incarnation: 1,
            seq: 1,
            keep: 0,
            want: 2,
            capacity: 2,
            lease: Millis(2_000),
            longest_request: Millis(2_000),
            spent: 0,
            levels: BTreeMap::new(),
        };
        assert_eq!(ledger.sync(&account, &request).await.unwrap().granted, 2);
        let client = redis::Client::open(redis.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut connection).await.unwrap();
        request.seq = 2;
        request.keep = 1;
        request.want = 1;
        assert_eq!(ledger.sync(&account, &request).await.unwrap().granted, 1);
    });
}
