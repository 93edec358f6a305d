use super::*;
use serde_json::{Value, json};

fn problems(document: &Value) -> Vec<String> {
    match Config::parse(document.to_string().as_bytes()) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.0.iter().map(ToString::to_string).collect(),
    }
}

fn least() -> Value {
    json!({
        "version": 1, "mode": "body", "service": {"cluster": "sluice"},
        "routes": [{"path": "/v1/chat/completions", "dialect": "openai_chat"}],
    })
}

#[test]
fn what_is_left_out_has_the_documented_defaults() {
    let config = Config::parse(least().to_string().as_bytes()).unwrap();
    assert_eq!(config.body_max_bytes, 1_048_576);
    assert_eq!(config.body_timeout, Millis(30_000));
    assert_eq!(config.sequences_max, 16);
    assert_eq!(config.service.timeout, Duration::from_secs(65));
    assert_eq!(config.verified_ttl, Millis(300_000));
    assert_eq!(config.key_headers, KEY_HEADERS_DEFAULT);
    let route = config.route("/v1/chat/completions").unwrap();
    assert_eq!(route.on_unavailable, OnUnavailable::Closed);
    assert_eq!(config.route("/v1/models"), None);
}

#[test]
fn every_error_is_told_at_once() {
    let mut document = least();
    document["version"] = json!(2);
    document["mode"] = json!("guess");
    document["servcie"] = json!({});
    document["service"] = json!({"timeout_ms": 0});
    document["key_headers"] = json!(["X-Key", "x-envoy-key", "api-key", "api-key"]);
    document["routes"][0]["dialect"] = json!("klingon");
    let mut found: Vec<String> =
        problems(&document).iter().filter_map(|line| line.split(':').next().map(str::to_owned)).collect();
    found.dedup();
    assert_eq!(
        found,
        ["version", "mode", "routes[0].dialect", "key_headers", "service.cluster", "service.timeout_ms", "servcie",]
    );
}

#[test]
fn the_mode_has_no_default() {
    let mut document = least();
    document.as_object_mut().unwrap().remove("mode");
    assert!(problems(&document).contains(&"mode: is required".to_owned()));
}

#[test]
fn key_headers_must_be_plain_names_of_nobody_else() {
    let mut document = least();
    document["key_headers"] = json!(["X-Key", "x-envoy-key", "x-tenant-id", "api-key", "api-key"]);
    assert_eq!(problems(&document).len(), 4);
    document["key_headers"] = json!([]);
    assert_eq!(problems(&document), ["key_headers: must name at least one header"]);
}

#[test]
fn headers_mode_needs_a_pool_on_every_route() {
    let mut document = least();
    document["mode"] = json!("headers");
    assert_eq!(problems(&document), ["routes[0].pool: is required in mode headers, where no body names a model"]);
    document["routes"][0]["pool"] = json!("smol");
    assert!(problems(&document).is_empty());
}

#[test]
fn a_path_that_no_request_can_match_is_refused() {
    for path in ["v1", "/v1//chat", "/v1?x=1", "/v1#x", "/a/../b"] {
        let mut document = least();
        document["routes"][0]["path"] = json!(path);
        assert_eq!(problems(&document).len(), 1, "{path}");
    }
}

#[test]
fn two_routes_of_one_path_and_no_route_at_all_are_refused() {
    let mut document = least();
    let route = document["routes"][0].clone();
    document["routes"] = json!([route, route]);
    assert_eq!(problems(&document), ["routes: \"/v1/chat/completions\" is listed twice"]);
    document["routes"] = json!([]);
    assert_eq!(problems(&document).len(), 1);
}

#[test]
fn the_secret_never_shows_in_debug_output() {
    let mut document = least();
    document["service"]["secret"] = json!("hunter2");
    let config = Config::parse(document.to_string().as_bytes()).unwrap();
    assert_eq!(config.service.secret.as_deref(), Some("hunter2"));
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn what_is_not_json_is_said_to_be_so() {
    for text in ["", "version: 1", "[]"] {
        assert!(Config::parse(text.as_bytes()).is_err(), "{text}");
    }
}
