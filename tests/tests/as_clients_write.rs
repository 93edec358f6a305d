//! What real clients and model servers write, in the forms that gateways are known to stumble over: through real Envoy.

use e2e::client::{CHAT_PATH, Chat, send};
use e2e::stack::{MODEL, Stack};
use e2e::tenant::Tenant;
use reqwest::Method;
use serde_json::{Value, json};

const SLASHED: &str = "Qwen/Qwen2.5-7B-Instruct";
const DEPLOYMENTS: &str = "/openai/deployments/{model}/chat/completions";

async fn stack(name: &str, plugin: impl FnOnce(&mut Value) + Send + 'static) -> Stack {
    Stack::builder(name)
        .tenant(Tenant::new("only").with("models", json!([MODEL, SLASHED])))
        .sidecar_config(|config| {
            config["pools"][0]["models"] = json!([MODEL, SLASHED, "large"]);
        })
        .plugin_config(plugin)
        .start()
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_with_a_slash_in_its_name_is_found_as_each_client_asks_for_it() {
    let stack = stack("clients-slash", |_| {}).await;
    let http1 = stack.client("only").unwrap();
    for client in [http1.over_http2().unwrap(), http1] {
        for escaped in ["/", "%2F", "%2f"] {
            let path = format!("/v1/models/{}", SLASHED.replace('/', escaped));
            let reply = send(client.request(Method::GET, &path)).await.unwrap();
            assert_eq!(
                (reply.status, reply.json()["id"].as_str()),
                (200, Some(SLASHED)),
                "{path}: {}",
                reply.summary()
            );
        }
        for path in ["/v1/chat%2Fcompletions", "/v1/models%2Fx", "/v1/models/..%2Fchat"] {
            let reply = send(client.request(Method::GET, path)).await.unwrap();
            assert_eq!(
                (reply.status, reply.reason()),
                (400, Some("path_not_normalized")),
                "{path}: {}",
                reply.summary()
            );
        }
    }
    assert_eq!(stack.upstream.calls().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_names_a_model_lets_no_body_name_another_one() {
    let add_route = |plugin: &mut Value| {
        let route = json!({"dialect": "openai_chat", "path": DEPLOYMENTS});
        plugin["routes"].as_array_mut().unwrap().push(route);
    };
    let stack = stack("clients-path", add_route).await;
    let http1 = stack.client("only").unwrap();
    for client in [http1.over_http2().unwrap(), http1] {
        let before = stack.upstream.calls().count();
        let call = async |of_path: &str, body: String| {
            let request = client.request(Method::POST, &DEPLOYMENTS.replace("{model}", of_path));
            send(request.header("content-type", "application/json").body(body)).await.unwrap()
        };
        let without_model = json!({"messages": [{"role": "user", "content": "hi"}]}).to_string();
        assert_eq!(call("large", Chat::to(MODEL).text()).await.reason(), Some("invalid_body"));
        assert_eq!(call(MODEL, Chat::to("large").text()).await.reason(), Some("invalid_body"));
        assert_eq!(call("large", without_model.clone()).await.reason(), Some("model_not_found"));
        assert_eq!(stack.upstream.calls().count(), before, "none of them reached a model");
        assert_eq!(call(MODEL, Chat::to(MODEL).text()).await.reason(), None);
        assert_eq!(call(MODEL, without_model).await.reason(), None);
        assert_eq!(stack.upstream.calls().count(), before + 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_of_tls_is_ignored_and_any_other_upgrade_is_refused_in_the_caller_s_words() {
    let stack = stack("clients-upgrade", |_| {}).await;
    let client = stack.client("only").unwrap();
    let offer = |path: &str, protocol: &str| {
        let request = client.request(Method::POST, path).header("content-type", "application/json");
        request.header("connection", "Upgrade").header("upgrade", protocol).body(Chat::to(MODEL).text())
    };
    let reply = send(offer(CHAT_PATH, "TLS/1.2")).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.summary());
    for (path, field) in
        [(CHAT_PATH, "/error/code"), ("/v1/messages", "/error/type"), ("/v2/x", "/error"), ("/x", "/reason")]
    {
        let reply = send(offer(path, "websocket")).await.unwrap();
        assert_eq!((reply.status, reply.reason()), (403, Some("upgrade_not_allowed")), "{path}: {}", reply.summary());
        assert!(reply.json().pointer(field).is_some_and(Value::is_string), "{path}: {}", reply.summary());
    }
    assert_eq!(stack.upstream.calls().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_envoy_answers_for_a_model_server_says_so_in_the_caller_s_words() {
    let stack = stack("clients-gone", |_| {}).await;
    let client = stack.client("only").unwrap();
    let chat = Chat::to(MODEL).behave(json!({"ending": "reset_at_once"}));
    let reply = client.chat(&chat).await.unwrap();
    assert_eq!((reply.status, reply.reason()), (503, Some("upstream_reset")), "{}", reply.summary());
    assert_eq!(reply.check_openai_error(), Ok(()), "{}", reply.summary());
    assert!(reply.header("x-admission-id").is_some() && reply.header("x-sluice-priority").is_some());
}
