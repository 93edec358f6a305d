use super::*;
use crate::dialect::{UsageRequest, apply};
use proptest::prelude::*;
use serde_json::{Value, json};

fn call(body: &str) -> Call {
    parse(body.as_bytes(), Rules::TEST).unwrap()
}

fn fault(body: impl AsRef<[u8]>) -> Fault {
    parse(body.as_ref(), Rules::TEST).unwrap_err()
}

#[test]
fn a_plain_call_is_read() {
    let call = call(r#"{"model": "m", "messages": [{"role": "user", "content": "Hello there"}]}"#);
    assert_eq!((call.model.as_deref().unwrap(), call.stream, call.sequences), ("m", false, 1));
    assert_eq!((call.max_tokens, call.usage_request), (None, None));
    // "user" and "Hello there" are 15 bytes: 4 tokens, and 4 for the message.
    assert_eq!(call.input_tokens, Tokens(8));
}

#[test]
fn the_larger_of_both_token_bounds_is_reserved() {
    let both = call(r#"{"model":"m","max_tokens":5,"max_completion_tokens":9,"n":3,"best_of":4}"#);
    assert_eq!((both.max_tokens, both.sequences), (Some(Tokens(9)), 4));
    assert_eq!(call(r#"{"model":"m","n":1,"n_cmpl":16}"#).sequences, 16, "llama.cpp reads n_cmpl first");
    let null = call(r#"{"model":"m","max_tokens":null,"n":null,"stream":null}"#);
    assert_eq!((null.max_tokens, null.sequences, null.stream), (None, 1, false));
}

#[test]
fn a_bound_that_only_llama_cpp_reads_does_not_bound_a_call_by_itself() {
    let body = r#"{"model":"m","n_predict":1}"#;
    let alone = call(body);
    assert_eq!(alone.max_tokens, None, "vLLM generates as much as it likes");
    let clamped = apply(body.as_bytes(), alone.limits.clamp(Tokens(100))).unwrap();
    assert_eq!(String::from_utf8(clamped.clone()).unwrap(), r#"{"max_tokens":100,"model":"m","n_predict":1}"#);
    assert!(call(std::str::from_utf8(&clamped).unwrap()).limits.clamp(Tokens(100)).is_empty());
    let body = r#"{"model":"m","n_predict":5000}"#;
    let lowered = apply(body.as_bytes(), call(body).limits.clamp(Tokens(100))).unwrap();
    assert_eq!(String::from_utf8(lowered).unwrap(), r#"{"max_tokens":100,"model":"m","n_predict":100}"#);
    assert!(call(r#"{"model":"m","max_completion_tokens":100,"n_predict":1}"#).limits.clamp(Tokens(100)).is_empty());
}

#[test]
fn text_counts_by_its_length_and_media_by_the_piece() {
    let image = format!("data:image/png;base64,{}", "A".repeat(100_000));
    let body = json!({"model": "m", "messages": [
        {"content": [{"image_url": {"url": image}}, {"input_audio": {"data": "B".repeat(50_000)}}]},
    ]});
    assert_eq!(call(&body.to_string()).input_tokens, Tokens(4 + 2 * 1024));
    let tools = json!({"model": "m", "tools": [{"name": "abcdefgh"}], "metadata": {"x": "not a prompt"}});
    assert_eq!(call(&tools.to_string()).input_tokens, Tokens(4 + 2));
}

#[test]
fn a_field_that_matters_may_not_stand_twice_however_it_is_spelled() {
    for (body, param) in [
        (r#"{"model":"a","model":"b"}"#, "model"),
        (r#"{"model":"a","\u006dodel":"b"}"#, "model"),
        (r#"{"model":"a","Model":"b"}"#, "model"),
        (r#"{"model":"a","messages":[],"messages":[]}"#, "messages"),
        (r#"{"model":"a","stream":true,"stream":false}"#, "stream"),
        (r#"{"model":"a","stream_options":{"include_usage":true,"include_usage":false}}"#, "stream_options"),
    ] {
        assert_eq!(fault(body).param.as_deref(), Some(param), "{body}");
    }
    assert_eq!(call(r#"{"model":"a","user":"x","user":"y"}"#).model.as_deref(), Some("a"));
}

#[test]
fn a_wrong_value_is_told_by_its_field() {
    for (field, values) in [
        ("max_tokens", &["-1", "0", "1.0", "1e3", "\"5\"", "99999999999", "[]", "true"][..]),
        ("max_completion_tokens", &["-1", "2147483648"]),
        ("n", &["0", "17", "1000", "-1", "\"2\"", "{}"]),
        ("best_of", &["0", "17"]),
        ("n_cmpl", &["0", "17"]),
        ("stream", &["1", "\"true\"", "[]"]),
        ("stream_options", &["1", "\"x\"", "[]", "{\"include_usage\":1}"]),
    ] {
        for value in values {
            let body = format!(r#"{{"model":"m","{field}":{value}}}"#);
            assert_eq!(fault(&body).param.as_deref(), Some(field), "{body}");
        }
    }
}

#[test]
fn the_model_must_be_a_short_text() {
    let long = format!(r#"{{"model":"{}"}}"#, "m".repeat(257));
    for body in ["{}", r#"{"model":""}"#, r#"{"model":null}"#, r#"{"model":["m"]}"#, &long] {
        assert_eq!(fault(body).param.as_deref(), Some("model"), "{body}");
    }
}

#[test]
fn what_is_not_one_json_object_is_refused() {
    for body in [
        &b""[..],
        b"   ",
        b"null",
        b"[]",
        b"\"model\"",
        b"{",
        b"{\"model\":\"m\"} x",
        b"{\"model\":\"m\"}{}",
        b"{\"model\":\"m\",}",
        b"{'model':'m'}",
        b"{\"model\":\"m\",\"x\":NaN}",
        b"\xef\xbb\xbf{\"model\":\"m\"}",
        b"{\"model\":\"\xff\"}",
        b"\xff\xfe{\0}\0",
        b"{\"model\":\"m\",\"messages\":[\"\\ud800\"]}",
    ] {
        assert_eq!(fault(body).param.as_deref(), None, "{}", String::from_utf8_lossy(body));
    }
}

#[test]
fn deep_nesting_is_refused_wherever_it_stands() {
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    for field in ["messages", "tools", "anything", "model", "n", "stream", "stream_options"] {
        let body = format!(r#"{{"model":"m","{field}":{deep}}}"#);
        fault(&body);
    }
    let fits = "[".repeat(120) + &"]".repeat(120);
    call(&format!(r#"{{"model":"m","anything":{fits}}}"#));
}

#[test]
fn usage_is_asked_for_only_where_a_stream_would_not_report_it() {
    const HIDDEN: Option<bool> = Some(true);
    const SHOWN: Option<bool> = Some(false);
    for (body, hides_event) in [
        (r#" { "model":"m","stream":true}"#, HIDDEN),
        (r#"{"model":"m","stream":true,"stream_options":null}"#, HIDDEN),
        // vLLM reports where the options do not say that it should not.
        (r#"{"model":"m","stream":true,"stream_options":{}}"#, SHOWN),
        (r#"{"model":"m","stream":true,"stream_options":{ "continuous_usage_stats": true }}"#, SHOWN),
        (r#"{"model":"m","stream":true,"stream_options":{ "x": {} }}"#, SHOWN),
        (r#"{"model":"m","stream":true,"stream_options":{"include_usage":false,"x":1}}"#, HIDDEN),
        (r#"{"stream_options":{"x":1,"include_usage" : null },"stream":true,"model":"m"}"#, HIDDEN),
        (r#"{"model":"m","stream":true,"stream_options":{"include_usage":true}}"#, None),
        (r#"{"model":"m","stream":false}"#, None),
        (r#"{"model":"m"}"#, None),
    ] {
        let request = call(body).usage_request;
        assert_eq!(request.as_ref().map(|request| request.hides_event), hides_event, "{body}");
        let Some(UsageRequest { edit, .. }) = request else { continue };
        let spliced: Value = serde_json::from_slice(&apply(body.as_bytes(), vec![edit]).unwrap()).unwrap();
        assert_eq!(spliced["stream_options"]["include_usage"], true, "{body}");
    }
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("[a-z_]{0,6}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(body: Vec<u8>) {
        let _ = parse(&body, Rules::TEST);
    }

    #[test]
    fn almost_json_is_read_without_a_panic(body in r#"\{("(model|n|stream|stream_options|messages)":("m"|1|true|\{"include_usage":|\{\}|\[|null|\\u),?){0,6}[\}\] ]{0,3}"#) {
        let _ = parse(body.as_bytes(), Rules::TEST);
    }

    #[test]
    fn a_spliced_body_is_the_original_plus_include_usage(
        extra in json_value(),
        options in proptest::option::of(json_value()),
        pretty: bool,
    ) {
        let mut body = json!({"model": "m", "stream": true, "extra": extra});
        let options = options.map(|value| if value.is_object() { value } else { Value::Null });
        if let Some(options) = options {
            body["stream_options"] = options;
        }
        let text = if pretty { format!("{body:#}") } else { body.to_string() };
        let request = call(&text).usage_request;
        let spliced = request.map_or(text.clone().into_bytes(), |request| apply(text.as_bytes(), vec![request.edit]).unwrap());
        if !body["stream_options"].is_object() {
            body["stream_options"] = json!({});
        }
        body["stream_options"]["include_usage"] = json!(true);
        prop_assert_eq!(serde_json::from_slice::<Value>(&spliced).unwrap(), body);
    }
}
