//! What a link to Redis does when the link fails: nothing takes longer than it may, and what is whole again is used again.

// Helpers of a test are tests too, but the lint knows only functions marked as such.
#![allow(clippy::unwrap_used, clippy::panic)]

use e2e::fault_proxy::{Fault, FaultProxy};
use e2e::folder::Folder;
use e2e::stack::Redis;
use e2e::stack::redis::cluster::Cluster;
use e2e::stack::redis::sentinels::Sentinels;
use e2e::stack::redis::{Engine, Setup};
use e2e::wait::{wait_for, wait_until};
use nix::sys::signal::Signal;
use quota_service::home::error::HomeError;
use quota_service::home::link::{FirstContact, Link, Lua, Notice, RedisSecrets};
use quota_service::settings::Settings;
use serde_json::{Value, json};
use std::cell::Cell;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

const SLACK: Duration = Duration::from_secs(20);
/// Of one call, with all that belongs to it. The promise is half a second, which calls say themselves when they give up; the
/// rest is for a busy machine. A call without a bound would wait for a dead connection until the kernel gives up on it.
const LONGEST_CALL: Duration = SLACK;
const KEY: &str = "sluice:{pool:smol}";

/// Counts its calls in the key, and returns the count.
const COUNT: &str = "return redis.call('HINCRBY', KEYS[1], 'calls', ARGV[1])";

/// A link as the section `ledger.redis` describes it.
fn link(redis: &Value) -> Link {
    let document = json!({
        "version": 1,
        "listeners": {"filter": {"unix": "a.sock"}, "operators": {"token_file": "t"}},
        "pools": [{"name": "a", "models": ["m"], "capacity": {"concurrent": 1}}],
        "ledger": {"redis": redis},
    });
    let settings = Settings::parse(&document.to_string(), Path::new("")).unwrap();
    Link::new(settings.ledger.redis().unwrap(), &RedisSecrets::default()).unwrap()
}

async fn count(link: &Link) -> Result<u64, HomeError> {
    count_on(KEY, link).await
}

async fn count_on(key: &str, link: &Link) -> Result<u64, HomeError> {
    let lua = Lua::new(COUNT);
    let mut call = lua.on(key.to_owned());
    call.arg(1);
    let started = Instant::now();
    let answer = link.run(&call).await;
    assert!(started.elapsed() < LONGEST_CALL, "took {:?}: {answer:?}", started.elapsed());
    answer
}

/// What is found of a Redis that is there. A machine that has other things to do may take longer to reach it than a start
/// waits for.
async fn first_contact(redis: &Value) -> Result<(), String> {
    wait_for("the first contact", SLACK, || async {
        match link(redis).first_contact().await {
            Ok(FirstContact::NotYet) => None,
            found => Some(found.map(drop)),
        }
    })
    .await
    .unwrap()
}

/// The first answer that came in time. On a busy machine half a second may pass in which nothing runs, and then a call has
/// failed of which nothing else is wrong.
async fn in_time(link: &Link) -> Result<u64, HomeError> {
    wait_for("a call ends in time", SLACK, || async {
        match count(link).await {
            Err(HomeError::Timeout(_)) => None,
            answer => Some(answer),
        }
    })
    .await
    .unwrap()
}

async fn counts_again(link: &Link) -> u64 {
    wait_for("calls are answered again", SLACK, || async { count(link).await.ok() }).await.unwrap()
}

/// A Redis behind a link that can be broken.
async fn rig(name: &str) -> (Folder, Redis, FaultProxy, Link) {
    let folder = Folder::create(name).unwrap();
    let redis = Redis::start(&folder).await.unwrap();
    let proxy = FaultProxy::start(SocketAddr::from(([127, 0, 0, 1], redis.port()))).await.unwrap();
    let link = link(&json!({"url": format!("redis://{}", proxy.address())}));
    // Then a call has all of its time for itself.
    let is_up = || async { link.command::<String>(&redis::cmd("PING")).await.is_ok() };
    wait_until("the link is up", SLACK, is_up).await.unwrap();
    assert!(in_time(&link).await.unwrap() >= 1);
    (folder, redis, proxy, link)
}

#[tokio::test]
async fn a_connection_that_fell_silent_is_replaced() {
    let (_folder, _redis, proxy, link) = rig("link-half-open").await;
    proxy.set(Fault::HalfOpen).await.unwrap();
    for _ in 0..3 {
        assert!(matches!(count(&link).await, Err(HomeError::Timeout(500) | HomeError::Redis(_))));
    }
    proxy.set(Fault::None).await.unwrap();
    // The old connection is dead for ever; only a new one can answer.
    assert!(counts_again(&link).await >= 2);
}

#[tokio::test]
async fn a_lost_reply_is_an_error_and_never_a_second_call() {
    let (_folder, redis, proxy, link) = rig("link-lost-reply").await;
    let calls = || redis.cli(&["HGET", KEY, "calls"]).unwrap().trim().parse::<u64>().unwrap();
    let before = calls();
    proxy.set(Fault::LoseReplies).await.unwrap();
    assert!(count(&link).await.is_err());
    proxy.set(Fault::None).await.unwrap();
    assert_eq!(calls(), before + 1, "applied, and not repeated");
    assert!(counts_again(&link).await >= before + 2);
}

#[tokio::test]
async fn a_reset_costs_one_call_at_most() {
    let (_folder, _redis, proxy, link) = rig("link-reset").await;
    for round in 0..10 {
        proxy.reset_all();
        let lost = count(&link).await.is_err();
        let next = in_time(&link).await;
        assert!(next.is_ok(), "round {round}, first one lost: {lost}, {next:?}");
    }
}

#[tokio::test]
async fn a_refusing_host_is_tried_until_it_accepts() {
    let (_folder, _redis, proxy, link) = rig("link-refused").await;
    proxy.set(Fault::RefuseNew).await.unwrap();
    proxy.reset_all();
    assert!(count(&link).await.is_err());
    let error = in_time(&link).await.unwrap_err();
    assert!(matches!(&error, HomeError::Away(why) if why.contains("refused")), "{error}");
    proxy.set(Fault::None).await.unwrap();
    counts_again(&link).await;
}

#[tokio::test]
async fn a_call_over_a_slow_link_ends_in_time_and_the_link_goes_on() {
    let (_folder, _redis, proxy, link) = rig("link-slow").await;
    let slow = Duration::from_millis(25);
    proxy.set(Fault::Delay { to_server: slow, to_client: slow }).await.unwrap();
    assert!(in_time(&link).await.unwrap() >= 2);
    let too_slow = Duration::from_millis(600);
    proxy.set(Fault::Delay { to_server: too_slow, to_client: too_slow }).await.unwrap();
    assert!(count(&link).await.is_err());
    proxy.set(Fault::None).await.unwrap();
    counts_again(&link).await;
}

#[tokio::test]
async fn a_paused_server_is_used_again_when_it_goes_on() {
    let (_folder, redis, _proxy, link) = rig("link-paused").await;
    redis.signal(Signal::SIGSTOP).unwrap();
    for _ in 0..3 {
        assert!(count(&link).await.is_err());
    }
    redis.signal(Signal::SIGCONT).unwrap();
    counts_again(&link).await;
}

#[tokio::test]
async fn a_flushed_script_costs_nothing() {
    let (_folder, redis, _proxy, link) = rig("link-flush").await;
    redis.cli(&["SCRIPT", "FLUSH"]).unwrap();
    assert!(in_time(&link).await.unwrap() >= 2);
}

#[tokio::test]
async fn the_first_contact_tells_absence_from_unfitness() {
    let folder = Folder::create("link-contact").unwrap();
    let evicting = ["--maxmemory", "100mb", "--maxmemory-policy", "volatile-ttl"];
    let redis = Redis::launch(&folder, Setup::named("redis").arguments(evicting)).await.unwrap();
    let problem = first_contact(&json!({"url": redis.url()})).await.unwrap_err();
    assert!(problem.contains("maxmemory-policy volatile-ttl"), "{problem}");
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]).unwrap();
    assert_eq!(first_contact(&json!({"url": redis.url()})).await, Ok(()));
    let nobody = link(&json!({"url": "redis://127.0.0.1:1"}));
    assert_eq!(nobody.first_contact().await.unwrap(), FirstContact::NotYet);
}

#[tokio::test]
async fn a_user_who_may_not_see_info_is_refused_with_the_right_to_add() {
    let folder = Folder::create("link-blind").unwrap();
    let redis = Redis::launch(&folder, Setup::named("redis")).await.unwrap();
    redis.cli(&["ACL", "SETUSER", "default", "-info"]).unwrap();
    let problem = first_contact(&json!({"url": redis.url()})).await.unwrap_err();
    assert!(problem.contains("+info"), "{problem}");
    redis.cli(&["ACL", "SETUSER", "default", "+info"]).unwrap();
    assert_eq!(first_contact(&json!({"url": redis.url()})).await, Ok(()));
}

#[tokio::test]
async fn a_single_server_and_a_cluster_are_not_mistaken_for_each_other() {
    let folder = Folder::create("link-mistaken").unwrap();
    let alone = Redis::launch(&folder, Setup::named("alone")).await.unwrap();
    let node = Redis::launch(&folder, Setup::named("node").node().unwrap()).await.unwrap();
    let problem = first_contact(&json!({"url": node.url()})).await.unwrap_err();
    assert!(problem.contains("ledger.redis.nodes"), "{problem}");
    // Without cluster support the crate does not get as far as our look at INFO.
    let as_cluster = link(&json!({"nodes": [alone.url()]}));
    assert_ne!(as_cluster.first_contact().await, Ok(FirstContact::Reached));
}

#[tokio::test]
async fn a_server_that_turns_unfit_after_it_was_fit_goes_on_being_used() {
    let (_folder, redis, proxy, link) = rig("link-turned").await;
    redis.cli(&["CONFIG", "SET", "maxmemory", "100mb", "maxmemory-policy", "allkeys-lru"]).unwrap();
    proxy.reset_all();
    assert!(counts_again(&link).await >= 2);
}

#[tokio::test]
async fn notices_come_and_come_again_after_the_connection_was_lost() {
    let (_folder, redis, proxy, link) = rig("link-notices").await;
    let mut notices = link.subscribe(vec!["sluice:notices".to_owned(), "sluice:others".to_owned()]);
    heard(&mut notices, &redis, "sluice:notices", "one").await;
    heard(&mut notices, &redis, "sluice:others", "two").await;
    proxy.reset_all();
    heard(&mut notices, &redis, "sluice:notices", "three").await;
    // Nobody writes to it, so only a ping can find out.
    proxy.set(Fault::HalfOpen).await.unwrap();
    proxy.set(Fault::None).await.unwrap();
    heard(&mut notices, &redis, "sluice:notices", "four").await;

    drop(notices);
    wait_until("nobody listens any more", SLACK, || async {
        redis.cli(&["PUBLISH", "sluice:notices", "x"]).unwrap().trim() == "0"
    })
    .await
    .unwrap();
}

/// Publishes until it is heard.
async fn heard(notices: &mut mpsc::Receiver<Notice>, redis: &Redis, channel: &str, payload: &str) {
    let expected = Notice { channel: channel.to_owned(), payload: payload.to_owned() };
    let deadline = Instant::now() + SLACK;
    while Instant::now() < deadline {
        redis.cli(&["PUBLISH", channel, payload]).unwrap();
        while let Ok(Some(notice)) = tokio::time::timeout(Duration::from_millis(100), notices.recv()).await {
            if notice == expected {
                return;
            }
        }
    }
    panic!("{expected:?} was never heard");
}

#[tokio::test]
async fn a_failover_of_the_sentinels_takes_script_command_and_notices_along() {
    let folder = Folder::create("link-sentinels").unwrap();
    let mut rig = Sentinels::start(&folder, None).await.unwrap();
    let link = link(&rig.settings());
    let mut notices = link.subscribe(vec!["sluice:notices".to_owned()]);
    assert!(in_time(&link).await.unwrap() >= 1);
    heard(&mut notices, &rig.servers[0], "sluice:notices", "before").await;

    // A stopped Sentinel and a stopped master: nobody closes a connection.
    rig.sentinels[0].signal(Signal::SIGSTOP).unwrap();
    rig.servers[0].signal(Signal::SIGSTOP).unwrap();
    rig.sentinels.swap(0, 2);
    rig.failed_over(0).await.unwrap();
    let started = Instant::now();
    counts_again(&link).await;
    eprintln!("the new master answered {:?} after the Sentinels had named it", started.elapsed());
    heard(&mut notices, &rig.servers[1], "sluice:notices", "after").await;
    let role: Vec<redis::Value> = link.command(&redis::cmd("ROLE")).await.unwrap();
    assert_eq!(role.first(), Some(&redis::Value::BulkString(b"master".to_vec())));
    rig.servers[0].kill();
}

#[tokio::test]
async fn a_cluster_with_a_stopped_master_is_served_by_the_others_and_then_by_its_heir() {
    let folder = Folder::create("link-cluster").unwrap();
    let cluster = Cluster::start(&folder, Engine::Redis).await.unwrap();
    let link = link(&cluster.settings());
    let mut notices = link.subscribe(vec!["sluice:notices".to_owned()]);
    assert!(in_time(&link).await.unwrap() >= 1);
    let master = cluster.master_of(KEY, 0).unwrap();
    heard(&mut notices, &cluster.nodes[(master + 1) % 6], "sluice:notices", "before").await;

    let other = (0..).map(|n| format!("sluice:{{pool:{n}}}")).find(|key| cluster.master_of(key, 0).unwrap() != master);
    let other = other.unwrap();
    cluster.nodes[master].signal(Signal::SIGSTOP).unwrap();
    let asked = (master + 1) % 6;
    let (served, failed) = (Cell::new(0), Cell::new(0));
    wait_until("its replica has taken over", SLACK, || async {
        let _ = count(&link).await;
        match count_on(&other, &link).await {
            Ok(_) => served.set(served.get() + 1),
            Err(_) => failed.set(failed.get() + 1),
        }
        cluster.master_of(KEY, asked).is_ok_and(|now| now != master)
    })
    .await
    .unwrap();
    eprintln!("meanwhile another master answered {} calls and missed {}", served.get(), failed.get());
    assert!(served.get() > 0, "the accounts on other masters go on");
    let started = Instant::now();
    counts_again(&link).await;
    eprintln!("the heir answered {:?} after the cluster had named it", started.elapsed());
    heard(&mut notices, &cluster.nodes[asked], "sluice:notices", "after").await;
}
