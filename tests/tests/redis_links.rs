//! However Redis is reached – plainly, by TLS, through Sentinels, as a cluster – calls are admitted, a failover is
//! followed, and an unfit Redis is refused.

use e2e::client::Chat;
use e2e::folder::Folder;
use e2e::scene::edit_config;
use e2e::stack::redis::certificates::Certificates;
use e2e::stack::redis::cluster::Cluster;
use e2e::stack::redis::sentinels::Sentinels;
use e2e::stack::redis::{Engine, Setup, documented_rights};
use e2e::stack::{MODEL, Redis, Stack};
use e2e::tenant::Tenant;
use e2e::wait::wait_until;
use serde_json::{Value, json};
use std::time::Duration;

const SLACK: Duration = Duration::from_secs(20);
const POOL_KEY: &str = "sluice:{pool:smol}";
const PASSWORD: &str = "correct-horse-battery-staple";

/// A stack whose ledger is where the section `ledger.redis` says.
async fn stack(name: &str, redis: Value) -> Stack {
    let builder = Stack::builder(name).tenant(Tenant::new("free")).sidecar_config(move |config| {
        config["ledger"]["redis"] = redis;
        config["ledger"]["lease_ms"] = json!(500);
    });
    builder.start().await.unwrap()
}

/// A stack that goes on trying to use a Redis, and says why it cannot.
async fn stack_that_cannot_use(name: &str, redis: Value, why: &str) -> Stack {
    let mut stack = stack(name, json!(null)).await;
    edit_config(&stack, |config| config["ledger"]["redis"] = redis).unwrap();
    stack.sidecar.restart_without_waiting().unwrap();
    wait_until("the log says why", SLACK, || async {
        let log = stack.sidecar.log();
        log.contains("starting without it")
            && log.lines().any(|line| line.contains("cannot use Redis") && line.contains(why))
    })
    .await
    .unwrap();
    stack
}

async fn assert_served(stack: &Stack) {
    let reply = stack.client("free").unwrap().chat_leased(&Chat::to(MODEL), SLACK).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.summary());
}

fn holds_the_pool(redis: &Redis) -> bool {
    redis.cli(&["EXISTS", POOL_KEY]).is_ok_and(|answer| answer.trim() == "1")
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_with_certificates_on_both_sides_carries_the_ledger() {
    let folder = Folder::create("links-tls").unwrap();
    let certificates = Certificates::create(&folder, "redis").unwrap();
    let redis = Redis::launch(&folder, Setup::named("redis").tls(&certificates)).await.unwrap();
    let stack = stack("links-tls", redis.settings()).await;
    assert_served(&stack).await;
    assert!(holds_the_pool(&redis));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_an_authority_that_we_do_not_trust_gets_no_password() {
    let folder = Folder::create("links-tls-foreign").unwrap();
    let certificates = Certificates::create(&folder, "redis").unwrap();
    let redis = Redis::launch(&folder, Setup::named("redis").tls(&certificates)).await.unwrap();
    let mut settings = redis.settings();
    settings["tls"] = Certificates::create(&folder, "foreign").unwrap().settings();
    settings["password_file"] = json!(folder.write_secret("password", PASSWORD).unwrap());
    let stack = stack_that_cannot_use("links-tls-foreign", settings, "certificate").await;
    assert!(!stack.operators().is_ready().await);
    let info = redis.info().unwrap();
    assert!(!info.contains_key("cmdstat_auth") && !info.contains_key("cmdstat_hello"), "nobody has tried to log in");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_rights_suffice_and_the_password_is_in_no_log() {
    let folder = Folder::create("links-acl").unwrap();
    let user = Setup::named("redis").arguments(["--user", "sluice"]).arguments(documented_rights(PASSWORD).unwrap());
    let redis = Redis::launch(&folder, user).await.unwrap();
    let password = folder.write_secret("password", PASSWORD).unwrap();
    let login = json!({"url": redis.url(), "user": "sluice", "password_file": password});
    let stack = stack("links-acl", login).await;
    assert_served(&stack).await;
    redis.cli(&["SCRIPT", "FLUSH"]).unwrap();
    wait_until("a script is there again", SLACK, || async {
        redis.info().unwrap().get("number_of_cached_scripts").is_some_and(|count| count != "0")
    })
    .await
    .unwrap();
    assert_served(&stack).await;
    assert_eq!(redis.cli(&["ACL", "LOG"]).unwrap().trim(), "", "nothing was refused");
    let log = stack.sidecar.log();
    assert!(log.contains("connected to Redis") && !log.contains(PASSWORD), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_told_without_telling_it() {
    let folder = Folder::create("links-wrong-password").unwrap();
    let user = Setup::named("redis").arguments(["--user", "sluice"]).arguments(documented_rights("another").unwrap());
    let redis = Redis::launch(&folder, user).await.unwrap();
    let password = folder.write_secret("password", PASSWORD).unwrap();
    let login = json!({"url": redis.url(), "user": "sluice", "password_file": password});
    let stack = stack_that_cannot_use("links-wrong-password", login, "authentication failed").await;
    assert!(!stack.sidecar.log().contains(PASSWORD), "{}", stack.sidecar.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_carries_the_ledger() {
    let folder = Folder::create("links-unix").unwrap();
    // Not in the folder: a socket's path has room for about a hundred characters, which a checkout's may exceed.
    let socket = std::env::temp_dir().join(format!("sluice-links-{}.sock", std::process::id()));
    let redis =
        Redis::launch(&folder, Setup::named("redis").arguments(["--unixsocket", &socket.display().to_string()]));
    let redis = redis.await.unwrap();
    let stack = stack("links-unix", json!({"url": format!("redis+unix://{}", socket.display())})).await;
    assert_served(&stack).await;
    assert!(holds_the_pool(&redis));
    std::fs::remove_file(socket).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn valkey_keeps_the_ledger_too() {
    let folder = Folder::create("links-valkey").unwrap();
    let valkey = Redis::launch(&folder, Setup::named("valkey").engine(Engine::Valkey)).await.unwrap();
    let stack = stack("links-valkey", valkey.settings()).await;
    assert_served(&stack).await;
    assert!(holds_the_pool(&valkey));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sentinels_lead_to_the_master_and_after_a_failover_to_the_new_one() {
    let folder = Folder::create("links-sentinel").unwrap();
    let mut rig = Sentinels::start(&folder, Some(PASSWORD)).await.unwrap();
    let stack = stack("links-sentinel", rig.settings()).await;
    assert_served(&stack).await;
    assert!(holds_the_pool(&rig.servers[0]));

    rig.servers[0].kill();
    rig.failed_over(0).await.unwrap();
    rig.servers[1].cli(&["DEL", POOL_KEY]).unwrap();
    stack.client("free").unwrap().wait_until_served(&Chat::to(MODEL), SLACK).await.unwrap();
    // The call may have been served by a lease that was there before the key was deleted.
    wait_until("the new master is written to", SLACK, || async { holds_the_pool(&rig.servers[1]) }).await.unwrap();
    assert!(!stack.sidecar.log().contains(PASSWORD));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_was_demoted_in_good_order_is_left() {
    let folder = Folder::create("links-demoted").unwrap();
    let rig = Sentinels::start(&folder, None).await.unwrap();
    let stack = stack("links-demoted", rig.settings()).await;
    assert_served(&stack).await;
    rig.sentinels[0].cli(&["SENTINEL", "FAILOVER", "main"]).unwrap();
    rig.failed_over(0).await.unwrap();
    rig.servers[1].cli(&["DEL", POOL_KEY]).unwrap();
    stack.client("free").unwrap().wait_until_served(&Chat::to(MODEL), SLACK).await.unwrap();
    wait_until("the new master is written to", SLACK, || async { holds_the_pool(&rig.servers[1]) }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_keeps_the_ledger_and_goes_on_without_the_accounts_master() {
    let folder = Folder::create("links-cluster").unwrap();
    let mut cluster = Cluster::start(&folder, Engine::Redis).await.unwrap();
    let mut settings = cluster.settings();
    settings["user"] = json!("sluice");
    settings["password_file"] = json!(folder.write_secret("password", PASSWORD).unwrap());
    let mut rights = documented_rights(PASSWORD).unwrap();
    rights.extend(["+cluster|slots", "+asking"].map(str::to_owned));
    let set_user: Vec<&str> =
        ["ACL", "SETUSER", "sluice"].into_iter().chain(rights.iter().map(String::as_str)).collect();
    for node in &cluster.nodes {
        node.cli(&set_user).unwrap();
    }
    let stack = stack("links-cluster", settings).await;
    assert_served(&stack).await;
    let master = cluster.master_of(POOL_KEY, 0).unwrap();
    assert!(holds_the_pool(&cluster.nodes[master]));

    cluster.nodes[master].kill();
    let asked = (master + 1) % 6;
    wait_until("its replica has taken over", SLACK, || async {
        cluster.master_of(POOL_KEY, asked).is_ok_and(|now| now != master)
    })
    .await
    .unwrap();
    let heir = cluster.master_of(POOL_KEY, asked).unwrap();
    cluster.nodes[heir].cli(&["DEL", POOL_KEY]).unwrap();
    stack.client("free").unwrap().wait_until_served(&Chat::to(MODEL), SLACK).await.unwrap();
    wait_until("the heir is written to", SLACK, || async { holds_the_pool(&cluster.nodes[heir]) }).await.unwrap();
    for (_, node) in cluster.nodes.iter().enumerate().filter(|(index, _)| *index != master) {
        assert_eq!(node.cli(&["ACL", "LOG"]).unwrap().trim(), "", "nothing was refused");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicting_redis_is_refused_at_the_start_with_the_line_to_change() {
    let folder = Folder::create("links-evicting").unwrap();
    let evicting = ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"];
    let redis = Redis::launch(&folder, Setup::named("redis").arguments(evicting)).await.unwrap();
    let mut stack = stack("links-evicting", json!(null)).await;
    edit_config(&stack, |config| config["ledger"]["redis"] = redis.settings()).unwrap();
    let mut error = String::new();
    // A start that does not reach Redis soon enough goes on without it.
    for _ in 0..3 {
        error = stack.sidecar.restart().await.unwrap_err().to_string();
        if error.contains("instead of starting") {
            break;
        }
    }
    assert!(error.contains("exit status: 64"), "{error}");
    assert!(error.contains("change `maxmemory-policy allkeys-lru`"), "{error}");

    redis.cli(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]).unwrap();
    stack.sidecar.restart().await.unwrap();
    stack.client("free").unwrap().wait_until_served(&Chat::to(MODEL), SLACK).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicting_redis_that_comes_up_late_is_not_used_until_that_is_mended() {
    let folder = Folder::create("links-evicting-late").unwrap();
    let evicting = ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"];
    let mut redis = Redis::launch(&folder, Setup::named("redis").arguments(evicting)).await.unwrap();
    redis.kill();
    let mut stack = stack_that_cannot_use("links-evicting-late", redis.settings(), "refused").await;
    redis.restart().await.unwrap();
    wait_until("the log tells what to change", SLACK, || async {
        stack.sidecar.log().contains("change `maxmemory-policy allkeys-lru`")
    })
    .await
    .unwrap();
    assert!(!stack.operators().is_ready().await);
    redis.cli(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]).unwrap();
    stack.sidecar.ready().await.unwrap();
    stack.client("free").unwrap().wait_until_served(&Chat::to(MODEL), SLACK).await.unwrap();
}
