use super::*;
use crate::config::reader::{ConfigErrors, read_document};
use crate::units::Millis;
use serde_json::{Value, json};

fn config(models: &Value) -> Result<Config, ConfigErrors> {
    let document = json!({
        "pools": [
            {"name": "small", "models": ["s"], "capacity": {"concurrent": 1}},
            {"name": "large", "models": ["l", "xl"], "capacity": {"concurrent": 1}},
        ],
        "models": models,
        "tenants": [
            {"id": "free", "models": ["s"], "limits": {"max_tokens": 100}},
            {"id": "paying"},
        ],
    });
    read_document(&document, Config::read)
}

fn usual() -> Config {
    config(&json!([
        {"name": "s", "aliases": ["gpt-4o-mini"], "upstream": "small-v2"},
        {"name": "l", "aliases": ["gpt-4o", "best"]},
    ]))
    .unwrap()
}

fn request(model: &str, max_tokens: Option<u64>) -> AdmissionRequest {
    AdmissionRequest {
        version: 1,
        id: "w-1".into(),
        key: crate::wire::KeyProof { id: None, digest: String::new() },
        model: Some(model.to_owned()),
        pool: None,
        input_tokens: Tokens(1),
        max_tokens: max_tokens.map(Tokens),
        prompts: 1,
        sequences: 1,
        stream: false,
        body_bytes: 1,
        priority: None,
        deadline_ms: None::<Millis>,
    }
}

#[test]
fn a_call_is_decided_under_the_models_own_name_and_sent_under_the_servers() {
    let config = usual();
    for (asked, own, upstream) in [
        ("s", "s", Some("small-v2")),
        ("gpt-4o-mini", "s", Some("small-v2")),
        ("small-v2", "small-v2", None),
        ("best", "l", Some("l")),
        ("l", "l", None),
        ("nobody", "nobody", None),
    ] {
        let mut request = request(asked, None);
        let rewrite = config.resolve(&"paying".into(), &mut request);
        assert_eq!(request.model.as_deref(), Some(own), "{asked}");
        assert_eq!(rewrite.upstream_model.as_ref().map(ModelName::as_str), upstream, "{asked}");
    }
}

#[test]
fn a_call_is_brought_down_to_its_tenants_ceiling() {
    let config = usual();
    for (tenant, asked, decided, written) in [
        ("free", Some(101), Some(100), Some(100)),
        ("free", None, Some(100), Some(100)),
        ("free", Some(100), Some(100), Some(100)),
        ("free", Some(0), Some(0), Some(100)),
        ("paying", Some(101), Some(101), None),
        ("paying", None, None, None),
    ] {
        let mut request = request("s", asked);
        let rewrite = config.resolve(&tenant.into(), &mut request);
        assert_eq!((request.max_tokens, rewrite.max_tokens), (decided.map(Tokens), written.map(Tokens)));
    }
}

#[test]
fn a_tenant_sees_the_names_that_it_may_use() {
    let names = |tenant: &str| {
        let models = usual().models_of(&tenant.into());
        models.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names("free"), "gpt-4o-mini s");
    assert_eq!(names("paying"), "best gpt-4o gpt-4o-mini l s xl");
    assert_eq!(names("nobody"), "");
}

#[test]
fn names_that_mean_two_models_or_none_are_refused() {
    for models in [
        json!([{"name": "unknown"}]),
        json!([{"name": "s", "aliases": ["l"]}]),
        json!([{"name": "s", "aliases": ["a"]}, {"name": "l", "aliases": ["a"]}]),
        json!([{"name": "s", "price": {"input": 1}}]),
        json!([{"aliases": ["a"]}]),
    ] {
        assert_eq!(config(&models).unwrap_err().0.len(), 1, "{models}");
    }
}

#[test]
fn money_is_rounded_up_once_and_cached_input_costs_as_input_unless_configured() {
    let price = |json: Value| config(&json!([{"name": "s", "price": json}])).unwrap().models[&"s".into()].price;
    let usage = Usage {
        source: UsageSource::Reported,
        input: Tokens(1000),
        output: Tokens(10),
        cached: Tokens(900),
        reasoning: Tokens(5),
    };
    let plain = json!({"input_micros_per_million": 150_000, "output_micros_per_million": 600_000});
    assert_eq!(price(plain).of(&usage), 156);
    let cached = json!({"input_micros_per_million": 150_000, "cached_micros_per_million": 15_000, "request_micros": 7});
    assert_eq!(price(cached.clone()).of(&usage), 36);
    assert_eq!(price(cached.clone()).of(&Usage { source: UsageSource::Fixed, ..usage }), 7);
    assert_eq!(price(cached).of(&Usage::default()), 0);
    assert_eq!(Price::default().of(&usage), 0);
}
