use super::*;
use crate::holdings::Amount;
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
    assert_eq!(config.body_max_bytes, 16 << 20);
    assert_eq!(config.holdings.paused_bytes, 256 << 20);
    assert_eq!((config.holdings.tenant_bytes, config.holdings.tenant_idle_streams), (64 << 20, 128));
    let amount = |calls, header_bytes, body_bytes| Amount { calls, header_bytes, body_bytes };
    assert_eq!(config.holdings.strangers, amount(1024, 8 << 20, 64 << 20));
    assert_eq!(config.holdings.source, amount(256, 2 << 20, 16 << 20));
    assert_eq!(config.stranger_idle, Millis(5_000));
    assert_eq!(config.body_timeout, Millis(30_000));
    assert_eq!(config.sequences_max, 16);
    assert_eq!(config.service.timeout, Duration::from_secs(65));
    assert_eq!(config.verified_ttl, Millis(300_000));
    assert_eq!(config.key_headers, KEY_HEADERS_DEFAULT);
    let found = config.route("/v1/chat/completions").unwrap();
    assert_eq!((found.route.on_unavailable, found.route.charge), (OnUnavailable::Closed, Tokens(1)));
    assert_eq!((&found.route.query, found.route.strict_fields), (&Query::Of(Vec::new()), false));
    assert!(config.route("/v1/models").is_none());
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
fn no_secret_ever_shows_in_debug_output() {
    let mut document = least();
    document["service"]["secret"] = json!("hunter2");
    document["route_secret"] = json!("0123456789abcdef0123456789abcdef");
    let config = Config::parse(document.to_string().as_bytes()).unwrap();
    assert_eq!(config.service.secret.as_ref().map(Secret::expose), Some("hunter2"));
    assert_eq!(config.route_secret.as_ref().map(Secret::expose), Some("0123456789abcdef0123456789abcdef"));
    let shown = format!("{config:?}");
    assert!(!shown.contains("hunter2") && !shown.contains("0123456789abcdef"), "{shown}");
}

#[test]
fn a_route_secret_that_can_be_guessed_or_is_still_to_be_set_is_refused() {
    for weak in ["", "SET-ME", &"a".repeat(31), &"a".repeat(257), &"two words ".repeat(5), &"é".repeat(32)] {
        let mut document = least();
        document["route_secret"] = json!(weak);
        let [problem] = problems(&document).try_into().unwrap();
        assert!(problem.starts_with("route_secret: ") && !problem.contains("SET-ME"), "{weak:?}: {problem}");
    }
}

#[test]
fn what_is_not_json_is_said_to_be_so() {
    for text in ["", "version: 1", "[]"] {
        assert!(Config::parse(text.as_bytes()).is_err(), "{text}");
    }
}

fn with_routes(routes: &Value) -> Value {
    let mut document = least();
    document["routes"] = routes.clone();
    document
}

#[test]
fn a_route_without_a_path_is_served_where_its_dialect_s_servers_listen() {
    let document = with_routes(&json!([{"dialect": "kserve_infer"}, {"dialect": "openai_chat"}]));
    let config = Config::parse(document.to_string().as_bytes()).unwrap();
    for path in ["/v2/models/simple/infer", "/v2/models/simple/versions/2/infer"] {
        assert_eq!(config.route(path).unwrap().model, Some("simple"), "{path}");
    }
    assert_eq!(config.route("/v1/chat/completions").unwrap().model, None);
    for path in ["/v2/repository/models/simple/load", "/v2/models/simple", "/v2/models//infer"] {
        assert!(config.route(path).is_none(), "{path}");
    }
}

#[test]
fn the_very_path_comes_before_a_pattern_wherever_it_stands() {
    let document = with_routes(&json!([
        {"dialect": "request", "path": "/v2/models/{model}/ready"},
        {"dialect": "request", "path": "/v2/models/one/ready", "pool": "first", "method": "GET", "charge": 0},
    ]));
    let config = Config::parse(document.to_string().as_bytes()).unwrap();
    let found = config.route("/v2/models/one/ready").unwrap();
    assert_eq!((found.route.pool.clone(), found.route.method.as_deref()), (Some("first".into()), Some("GET")));
    assert_eq!(config.route("/v2/models/two/ready").unwrap().model, Some("two"));
}

#[test]
fn a_route_that_would_not_know_its_pool_or_its_charge_is_refused() {
    for (route, path) in [
        (json!({"dialect": "request"}), "routes[0].path"),
        (json!({"dialect": "request", "path": "/x"}), "routes[0].pool"),
        (json!({"dialect": "openai_uploads"}), "routes[0].pool"),
        (json!({"dialect": "openai_models", "pool": "p"}), "routes[0].pool"),
        (json!({"dialect": "openai_chat", "charge": 3}), "routes[0].charge"),
        (json!({"dialect": "openai_chat", "method": "GET"}), "routes[0].method"),
        (json!({"dialect": "request", "path": "/x", "pool": "p", "method": "get"}), "routes[0].method"),
        (json!({"dialect": "openai_uploads", "pool": "p", "strict_fields": true}), "routes[0].strict_fields"),
        (json!({"dialect": "openai_chat", "strict_fields": "yes"}), "routes[0].strict_fields"),
        (json!({"dialect": "anthropic_messages", "splice_usage": false}), "routes[0].splice_usage"),
        (json!({"dialect": "openai_chat", "splice_usage": 0}), "routes[0].splice_usage"),
        (json!({"dialect": "openai_chat", "query": ["a&b"]}), "routes[0].query"),
        (json!({"dialect": "openai_chat", "query": ["a", "*"]}), "routes[0].query"),
        (json!({"dialect": "openai_chat", "query": "a"}), "routes[0].query"),
    ] {
        let found = problems(&with_routes(&json!([route])));
        assert!(found.iter().any(|line| line.starts_with(path)), "{route}: {found:?}");
    }
    let both = with_routes(&json!([{"dialect": "kserve_infer"}, {"dialect": "kserve_infer"}]));
    assert_eq!(problems(&both).len(), 2);
}

#[test]
fn a_path_names_no_model_where_the_request_names_one_that_is_not_read() {
    for (mode, dialect, is_refused) in [
        ("body", "openai_chat", false),
        ("body", "anthropic_messages", false),
        ("body", "kserve_generate", false),
        ("body", "request", false),
        ("body", "openai_uploads", true),
        ("body", "kserve_grpc_infer", true),
        ("body", "kserve_grpc_stream", true),
        ("headers", "openai_chat", true),
        ("headers", "openai_embeddings", true),
        ("headers", "openai_media", true),
        ("headers", "anthropic_count_tokens", true),
        ("headers", "kserve_generate", false),
        ("headers", "kserve_infer", false),
        ("headers", "openai_models", false),
    ] {
        let mut document = with_routes(&json!([{"dialect": dialect, "path": "/x/{model}/y"}]));
        document["mode"] = json!(mode);
        let found = problems(&document);
        let names = |line: &String| line.starts_with("routes[0].path: may not have {model}");
        assert_eq!(found.iter().any(names), is_refused, "{mode} {dialect}: {found:?}");
    }
}

#[test]
fn a_pool_s_servers_have_ten_levels_or_none() {
    let mut document = least();
    document["server_priority"] = json!({"p": [9, 8, 7, 6, 5, 4, 3, 2, 1, -9]});
    let config = Config::parse(document.to_string().as_bytes()).unwrap();
    assert_eq!(config.levels_of(&"p".into()), Levels::new([9, 8, 7, 6, 5, 4, 3, 2, 1, -9]));
    assert_eq!(config.levels_of(&"q".into()), None);
    for wrong in [
        json!([]),
        json!({"p": [1]}),
        json!({"p": "x"}),
        json!({"p": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9.5]}),
        json!({"p": [0, 1, 2, 3, 4, 5, 6, 7, 8, 7]}),
    ] {
        document["server_priority"] = wrong;
        assert_eq!(problems(&document).len(), 1);
    }
}

#[test]
fn a_worker_must_have_room_for_one_body() {
    let mut document = least();
    document["body"] = json!({"max_bytes": 1000, "paused_max_bytes": 999});
    assert_eq!(problems(&document).len(), 1);
    document["body"] = json!({"max_bytes": 1000});
    assert!(problems(&document).is_empty());
}

#[test]
fn strangers_and_tenants_have_the_budgets_that_are_configured() {
    let mut document = least();
    document["strangers"] = json!({"streams": 8, "body_bytes": 1 << 20, "per_source": {"header_bytes": 5}});
    document["tenants"] = json!({"body_bytes": 16 << 20, "idle_streams": 0});
    let config = Config::parse(document.to_string().as_bytes()).unwrap();
    assert_eq!((config.holdings.tenant_bytes, config.holdings.tenant_idle_streams), (16 << 20, 0));
    assert_eq!((config.holdings.source.calls, config.holdings.source.header_bytes), (2, 5));
    assert_eq!(config.holdings.source.body_bytes, 1 << 20);
    document["strangers"] = json!({"streams": 0, "per_source": {"stream": 1}});
    document["tenants"] = json!({"body_bytes": 5});
    let found = problems(&document);
    for path in ["tenants.body_bytes", "strangers.streams", "strangers.per_source.stream"] {
        assert!(found.iter().any(|line| line.starts_with(path)), "{path}: {found:?}");
    }
}
