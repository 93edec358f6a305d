use super::super::credentials::RedisSecrets;
use super::*;
use serde_json::{Value, json};
use sluice_policy::config::reader::read_document;

fn read(ledger: &Value) -> Result<Option<RedisSettings>, Vec<String>> {
    let read = read_document(ledger, |section| Some(RedisSettings::read(section, Path::new("/etc"))));
    read.map_err(|errors| errors.0.iter().map(ToString::to_string).collect())
}

fn good(ledger: &Value) -> RedisSettings {
    read(ledger).unwrap().unwrap()
}

fn paths(ledger: &Value) -> Vec<String> {
    let problems = read(ledger).map(drop).unwrap_err();
    problems.iter().filter_map(|line| line.split_once(": ")).map(|(path, _)| path.to_owned()).collect()
}

fn tcp(host: &str, port: u16) -> ConnectionAddr {
    ConnectionAddr::Tcp(host.to_owned(), port)
}

#[test]
fn without_a_word_on_redis_the_ledger_is_embedded() {
    assert!(read(&json!({})).unwrap().is_none());
}

#[test]
fn the_short_form_is_a_url_and_a_file() {
    let settings = good(&json!({"redis_url": "redis://sluice@redis:6379/2", "redis_password_file": "pw"}));
    assert!(matches!(&settings.place, Place::One(address) if *address == tcp("redis", 6379)));
    assert_eq!((settings.login.user.as_deref(), settings.login.database), (Some("sluice"), 2));
    assert!(matches!(&settings.login.password, Password::File { file, at }
        if file == Path::new("/etc/pw") && at == "redis_password_file"));
    assert_eq!(settings.timeout, Duration::from_millis(500));
}

#[test]
fn every_sentinel_is_a_node_and_has_its_own_port() {
    let settings = good(&json!({"redis": {
        "url": "redis+sentinel://sluice@s1,s2:26380,[::1]/main/1",
        "password_env": "REDIS_PASSWORD",
        "sentinel": {"user": "watcher", "password_file": "sentinel-pw"},
        "timeout_ms": 200,
    }}));
    let Place::Sentinel { nodes, master, login } = &settings.place else { panic!("{settings:?}") };
    assert_eq!(nodes, &[tcp("s1", 26379), tcp("s2", 26380), tcp("::1", 26379)]);
    assert_eq!((master.as_str(), login.user.as_deref()), ("main", Some("watcher")));
    assert!(matches!(&login.password, Password::File { file, .. } if file == Path::new("/etc/sentinel-pw")));
    assert_eq!((settings.login.user.as_deref(), settings.login.database), (Some("sluice"), 1));
    assert!(matches!(&settings.login.password, Password::Environment { variable, .. } if variable == "REDIS_PASSWORD"));
    assert_eq!(settings.timeout, Duration::from_millis(200));
}

#[test]
fn tls_may_name_its_authority_and_a_certificate_of_ours() {
    let tls = json!({"ca_file": "ca.pem", "cert_file": "us.pem", "key_file": "us.key"});
    for url in ["rediss://redis", "rediss+sentinel://s1,s2/main"] {
        let settings = good(&json!({"redis": {"url": url, "tls": tls}}));
        let files = settings.tls.unwrap();
        assert_eq!(files.authority.as_deref(), Some(Path::new("/etc/ca.pem")));
        assert_eq!(files.client.unwrap().1, Path::new("/etc/us.key"));
    }
}

#[test]
fn several_nodes_are_a_cluster() {
    let settings = good(&json!({"redis": {"nodes": ["redis://a:7000", "redis://b"], "user": "sluice"}}));
    assert!(matches!(&settings.place, Place::Cluster(nodes) if *nodes == [tcp("a", 7000), tcp("b", 6379)]));
    assert_eq!(settings.login.user.as_deref(), Some("sluice"));
}

#[test]
fn a_unix_socket_is_a_place_too() {
    let settings = good(&json!({"redis_url": "redis+unix:///run/redis.sock?user=sluice"}));
    assert!(matches!(&settings.place, Place::One(ConnectionAddr::Unix(path)) if path == Path::new("/run/redis.sock")));
    assert_eq!(settings.login.user.as_deref(), Some("sluice"));
}

#[test]
fn a_password_in_the_url_does_not_show() {
    for url in ["redis://:hunter2@redis", "redis+sentinel://u:hunter2@s1/main", "redis+unix:///s?pass=hunter2"] {
        let settings = good(&json!({"redis_url": url}));
        assert!(matches!(&settings.login.password, Password::Inline(secret) if secret.expose() == "hunter2"), "{url}");
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
    let sentinel_user = good(&json!({"redis_url": "redis+sentinel://u:hunter%232@s1/main"})).login;
    assert!(matches!(&sentinel_user.password, Password::Inline(secret) if secret.expose() == "hunter#2"));
}

#[test]
fn what_is_wrong_with_a_url_is_told_without_repeating_it() {
    for url in [
        "http://:hunter2@redis",
        "redis+sentinel://:hunter2@s1",
        "redis+sentinel://:hunter2@s1,:7/main",
        "redis+sentinel://:hunter2@s1/main/one",
        "rediss://:hunter2@redis/#insecure",
        "redis://:hunter2@redis:port",
    ] {
        let problems = read(&json!({"redis_url": url})).unwrap_err();
        assert_eq!(problems.len(), 1, "{url}: {problems:?}");
        assert!(problems[0].starts_with("redis_url: ") && !problems[0].contains("hunter2"), "{url}: {problems:?}");
    }
}

#[test]
fn contradictions_are_all_told_at_once() {
    let ledger = json!({"redis_url": "redis://a", "redis": {
        "url": "redis://me:secret@b",
        "user": "me-too",
        "password_file": "x",
        "password_env": "X",
        "sentinel": {"pasword_file": "y"},
        "tls": {"cert_file": "z", "ca_file": "ca"},
        "timeout_ms": 501,
    }});
    let expected = [
        "redis_url",
        "redis.password_env",
        "redis.sentinel.pasword_file",
        "redis.tls.key_file",
        "redis.timeout_ms",
        "redis.user",
        "redis.sentinel",
        "redis.tls",
    ];
    assert_eq!(paths(&ledger), expected);
    assert_eq!(paths(&json!({"redis": {}})), ["redis.url"]);
    assert_eq!(paths(&json!({"redis": {"url": "redis://a", "nodes": ["redis://b"]}})), ["redis.nodes"]);
    assert_eq!(paths(&json!({"redis_password_file": "x"})), ["redis_password_file"]);
    assert_eq!(paths(&json!({"redis_url": "redis://:a@b", "redis_password_file": "x"})), ["redis_url"]);
    for nodes in [["redis://a", "rediss://b"], ["redis://u@a", "redis://b"], ["redis://a", "redis+unix:///b"]] {
        assert_eq!(paths(&json!({"redis": {"nodes": nodes}})), ["redis.nodes"], "{nodes:?}");
    }
}

#[test]
fn everything_that_cannot_be_opened_is_told_at_once() {
    let settings = good(&json!({"redis": {
        "url": "rediss+sentinel://s1/main",
        "password_env": "SLUICE_TEST_NOT_SET",
        "sentinel": {"password_file": "none"},
        "tls": {"ca_file": "none", "cert_file": "hostname", "key_file": "none"},
    }}));
    let mut errors = Vec::new();
    RedisSecrets::open(&settings, &mut errors);
    let paths: Vec<&str> = errors.iter().map(|error| error.path.as_str()).collect();
    let expected = [
        "redis.password_env",
        "redis.sentinel.password_file",
        "ledger.redis.tls.ca_file",
        "ledger.redis.tls.cert_file",
        "ledger.redis.tls.key_file",
    ];
    assert_eq!(paths, expected, "{errors:?}");
}
