use super::*;
use serde_json::json;

fn read(document: &serde_json::Value) -> Result<Config, Vec<String>> {
    reader::read_document(document, Config::read).map_err(|errors| errors.0.iter().map(ToString::to_string).collect())
}

fn pool() -> serde_json::Value {
    json!([{"name": "a", "models": ["m"], "capacity": {"concurrent": 1}}])
}

#[test]
fn a_small_configuration_needs_little() {
    let config = read(&json!({"pools": pool(), "tenants": [{"id": "dept-a"}]})).unwrap();
    let tenant = &config.tenants[&"dept-a".into()];
    assert_eq!(&*tenant.namespace, "dept-a");
    assert_eq!(u8::from(tenant.default_priority), 5);
    assert_eq!(config.queue, QueueSettings::default());
}

#[test]
fn what_is_reserved_without_a_context_has_a_default_and_a_bound_and_says_nothing_beside_one() {
    let pool = |fields: serde_json::Value| {
        let mut pool = json!({"name": "a", "models": ["m"], "capacity": {"concurrent": 1}});
        pool.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        read(&json!({"pools": [pool]})).map(|config| config.pools[&"a".into()].reserve_at_most.0)
    };
    assert_eq!((pool(json!({})), pool(json!({"reserve_at_most": 500}))), (Ok(32_768), Ok(500)));
    let errors = pool(json!({"reserve_at_most": 500, "context_length": 4_096})).unwrap_err();
    assert!(errors[0].starts_with("pools[0].reserve_at_most: says nothing beside context_length"), "{errors:?}");
    assert!(pool(json!({"reserve_at_most": 0})).is_err());
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let errors = read(&json!({
        "queue": {"weights": [1, 2, 0], "timeout_ms": 0},
        "groups": [{"name": "internal", "tiers": ["x"]}, {"name": "internal", "tiers": ["x"]}],
        "pools": [
            {"name": "a", "models": ["m"], "capacity": {"concurrent": 0}, "shares": {"nobody": 1, "internal": 0}},
            {"name": "b", "models": ["m"], "capacity": {"concurrent": 1, "burst_tokens": 5}},
        ],
        "tenants": [
            {"id": "x y", "priority": {"default": 3, "ceiling": 5}},
            {"id": "t", "models": ["nobody"], "group": "g", "limits": {"tokens_per_min": -1, "rpm": 3}},
        ],
        "key_rules": [{"match": "*a*", "tenant": "nobody"}, {"match": "a"}],
    }))
    .unwrap_err();
    let paths: Vec<&str> = errors.iter().filter_map(|error| error.split_once(": ")).map(|(path, _)| path).collect();
    let expected = [
        "queue.weights",
        "queue.weights[2]",
        "queue.timeout_ms",
        "groups[1].name",
        "groups[1].tiers",
        "pools[0].capacity.concurrent",
        "pools[0].shares.internal",
        "pools[0].shares.nobody",
        "pools[1].capacity.burst_tokens",
        "pools[1].models",
        "tenants[0].id",
        "tenants[0].priority.default",
        "tenants[1].group",
        "tenants[1].limits.tokens_per_min",
        "tenants[1].limits.rpm",
        "tenants[1].models",
        "key_rules[0].tenant",
        "key_rules[0].match",
        "key_rules[1].match",
    ];
    let mut sorted = (paths, expected.to_vec());
    sorted.0.sort_unstable();
    sorted.1.sort_unstable();
    assert_eq!(sorted.0, sorted.1, "{errors:#?}");
}

#[test]
fn weights_are_ten_positive_integers() {
    let nan = serde_json::Value::Null;
    let each = |found: &str| -> Vec<String> {
        let error = |at| format!("queue.weights[{at}]: must be an integer from 1 to 1000000, found {found}");
        (0..10).map(error).collect()
    };
    let whole = |problem: &str| vec![format!("queue.weights: must be {problem}")];
    for (weights, expected) in [
        (json!(vec![0; 10]), each("0")),
        (json!(vec![-1; 10]), each("-1")),
        (json!(vec![nan; 10]), each("nothing, or what is not a number")),
        (json!(vec![1; 11]), whole("10 integers, for P0 to P9, found 11")),
        (json!("1"), whole("a list of 10 integers, for P0 to P9")),
    ] {
        let errors = read(&json!({"queue": {"weights": weights}, "pools": pool()})).unwrap_err();
        assert_eq!(errors, expected);
    }
}

#[test]
fn rules_give_keys_a_tenant_and_a_priority_by_their_name() {
    let key = |name: &str| json!({"name": name, "hmac": format!("v1:{:0>64x}", name.len())});
    let config = read(&json!({
        "pools": pool(),
        "tenants": [{"id": "dept-a", "keys": [key("dept_a_web")]}, {"id": "others"}],
        "keys": [key("dept_a_batch"), key("crawler"), key("x_nightly")],
        "key_rules": [
            {"match": "dept_a_batch", "priority": 6},
            {"match": "dept_a_*", "tenant": "dept-a", "priority": 0},
            {"match": "*_nightly", "tenant": "others", "priority": 9},
            {"match": "crawler", "tenant": "others"},
        ],
    }))
    .unwrap();
    let keys = |tenant: &str| -> Vec<(String, Option<u8>)> {
        let keys = &config.tenants[&tenant.into()].keys;
        keys.iter().map(|key| (key.name.clone(), key.priority.map(u8::from))).collect()
    };
    assert_eq!(keys("dept-a"), [("dept_a_web".to_owned(), Some(0)), ("dept_a_batch".to_owned(), Some(6))]);
    assert_eq!(keys("others"), [("crawler".to_owned(), None), ("x_nightly".to_owned(), Some(9))]);
}

#[test]
fn a_key_and_a_namespace_belong_to_one_tenant() {
    let key = json!([{"name": "k", "id": "a1", "hmac": format!("v1:{}", "0".repeat(64))}]);
    let tenants = json!([{"id": "a", "keys": key}, {"id": "b", "namespace": "a", "keys": key}]);
    let errors = read(&json!({"pools": pool(), "tenants": tenants})).unwrap_err();
    assert_eq!(
        errors,
        [
            "tenants[1].namespace: the namespace a is another tenant's already",
            "tenants[1].keys[0].id: is another key's already",
            "tenants[1].keys[0].hmac: is another key's already",
        ]
    );
}

#[test]
fn a_tenant_is_in_the_group_of_its_tier_unless_it_names_another() {
    let config = read(&json!({
        "groups": [{"name": "internal", "tiers": ["dept"]}, {"name": "external", "tiers": ["paid", "free"]}],
        "pools": [{"name": "a", "models": ["m"], "capacity": {"concurrent": 1}, "shares": {"internal": 80, "external": 20}}],
        "tenants": [
            {"id": "a", "tier": "dept"},
            {"id": "b", "tier": "free"},
            {"id": "c", "tier": "free", "group": "internal"},
            {"id": "d"},
        ],
    }))
    .unwrap();
    let groups: Vec<u16> = config.tenants.values().map(|tenant| tenant.group.0).collect();
    assert_eq!(groups, [1, 2, 1, 0]);
    assert_eq!(config.pools[&"a".into()].shares, BTreeMap::from([(GroupIndex(1), 80), (GroupIndex(2), 20)]));
}

#[test]
fn a_models_tokens_may_weigh_differently() {
    use crate::units::Tokens;
    use crate::wire::Usage;
    let config = read(&json!({
        "pools": pool(),
        "charges": [{"models": ["m"], "output_percent": 300, "cached_percent": 10}],
    }))
    .unwrap();
    let usage = Usage { input: Tokens(100), output: Tokens(10), cached: Tokens(95), ..Usage::default() };
    // 5 + 9.5 + 30, rounded up.
    assert_eq!(config.models[&"m".into()].charge.of(&usage), Tokens(45));
}
