//! A body's `priority` is a turn in the model server's own queue: what the server gets of it, byte for byte, through real
//! Envoy.

use e2e::client::{CHAT_PATH, send};
use e2e::stack::{MODEL, POOL, Stack};
use e2e::tenant::Tenant;
use reqwest::Method;
use serde_json::{Value, json};

const DEPLOYMENTS: &str = "/openai/deployments/{model}/chat/completions";
const USAGE: &str = r#""stream_options":{"include_usage":true}"#;

/// Its tenants are at the levels 3 and, with a ceiling of 9 tokens, 7.
async fn stack(name: &str, levels: Option<Value>) -> Stack {
    Stack::builder(name)
        .tenant(Tenant::new("first").priority(3))
        .tenant(Tenant::new("last").priority(7).limit("max_tokens", 9))
        .plugin_config(|plugin| {
            let route = json!({"dialect": "openai_chat", "path": DEPLOYMENTS});
            plugin["routes"].as_array_mut().unwrap().push(route);
            if let Some(levels) = levels {
                plugin["server_priority"] = json!({POOL: levels});
            }
        })
        .start()
        .await
        .unwrap()
}

/// What the model server gets when a tenant sends a body.
async fn received(stack: &Stack, tenant: &str, priority: Option<&str>, path: &str, body: &str) -> Vec<String> {
    let http1 = stack.client(tenant).unwrap();
    let mut received = Vec::new();
    for client in [http1.over_http2().unwrap(), http1] {
        let before = stack.upstream.calls().count();
        let mut request = client.request(Method::POST, path).header("content-type", "application/json");
        if let Some(priority) = priority {
            request = request.header("x-priority", priority);
        }
        let reply = send(request.body(body.to_owned())).await.unwrap();
        assert_eq!(stack.upstream.calls().count(), before + 1, "{body}: {}", reply.summary());
        received.push(String::from_utf8(stack.upstream.calls().last().unwrap().body.to_vec()).unwrap());
    }
    received
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_says_what_it_means_a_server_gets_no_priority() {
    let stack = stack("priority-none", None).await;
    let of_path = DEPLOYMENTS.replace("{model}", MODEL);
    let m = format!(r#""model":"{MODEL}""#);
    for (path, body, expected) in [
        (CHAT_PATH, format!(r#"{{{m},"priority":-5}}"#), format!("{{{m}}}")),
        (CHAT_PATH, format!(r#"{{"priority" : -5 , {m}}}"#), format!("{{ {m}}}")),
        (CHAT_PATH, format!(r#"{{{m},"priority":null,"n":1}}"#), format!(r#"{{{m},"n":1}}"#)),
        (CHAT_PATH, format!(r#"{{{m},"x":{{"priority":1}}}}"#), format!(r#"{{{m},"x":{{"priority":1}}}}"#)),
        (CHAT_PATH, format!(r#"{{"priority":1,"stream":true,{m}}}"#), format!(r#"{{{USAGE},"stream":true,{m}}}"#)),
        (&of_path, r#"{"priority":1}"#.to_owned(), "{}".to_owned()),
        (&of_path, r#"{ "stream":true, "priority":1 }"#.to_owned(), format!(r#"{{{USAGE}, "stream":true }}"#)),
    ] {
        assert_eq!(received(&stack, "first", None, path, &body).await, [&*expected, &expected], "{body}");
    }
    for (body, expected) in [
        ("{}", r#"{"max_tokens":9}"#),
        (r#"{"priority":1}"#, r#"{"max_tokens":9}"#),
        (r#"{"n":1}"#, r#"{"max_tokens":9,"n":1}"#),
    ] {
        assert_eq!(received(&stack, "last", None, &of_path, body).await, [expected; 2], "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_levels_are_mapped_a_call_gets_its_own_or_a_worse_one_that_it_asks_for() {
    let stack = stack("priority-map", Some(json!([0, 10, 20, 30, 40, 50, 60, 70, 80, 90]))).await;
    let of_path = DEPLOYMENTS.replace("{model}", MODEL);
    for (tenant, priority, body, expected) in [
        ("first", None, r#"{"priority":-9,"n":1}"#, r#"{"priority":30,"n":1}"#),
        ("first", None, r#"{"priority":31}"#, r#"{"priority":31}"#),
        ("first", None, "{}", r#"{"priority":30}"#),
        ("first", Some("5"), r#"{"n":1}"#, r#"{"priority":50,"n":1}"#),
        ("last", None, r#"{"priority":30}"#, r#"{"max_tokens":9,"priority":70}"#),
        ("last", None, "{ }", r#"{"max_tokens":9,"priority":70 }"#),
    ] {
        assert_eq!(received(&stack, tenant, priority, &of_path, body).await, [expected; 2], "{tenant}: {body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_priority_that_readers_may_take_for_different_ones_reaches_no_server() {
    let stack = stack("priority-odd", None).await;
    let client = stack.client("first").unwrap();
    for given in [r#""priority":1,"priority":2"#, r#""Priority":1"#, r#""priority":1.5"#, r#""priority":"1""#] {
        let body = format!(r#"{{"model":"{MODEL}",{given}}}"#);
        let request = client.request(Method::POST, CHAT_PATH).header("content-type", "application/json");
        let reply = send(request.body(body)).await.unwrap();
        assert_eq!((reply.status, reply.reason()), (400, Some("invalid_body")), "{given}: {}", reply.summary());
    }
    assert_eq!(stack.upstream.calls().count(), 0);
}
