//! What LiteLLM would obey beside the call that was admitted does not reach it.

use e2e::client::{Chat, Client, send};
use e2e::folder::Folder;
use e2e::ports;
use e2e::stack::litellm::{MASTER_KEY, send_master_key};
use e2e::stack::{LiteLlm, MODEL, Stack};
use e2e::tenant::Tenant;
use e2e::upstream::{Call, Upstream};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

/// The models that LiteLLM asks for at the server behind it: the tenant's, one of its deployments that a tag chooses, and
/// one that the tenant may not use.
const OPEN: &str = "open";
const PAID: &str = "paid";
const SECRET: &str = "secret";
/// To LiteLLM: a model whose server is away.
const BROKEN: &str = "broken";

/// A way to make LiteLLM do what its call was not admitted for.
struct Trick {
    /// As a call of this model.
    request: fn(&Client, &str) -> RequestBuilder,
    /// Whether a call that LiteLLM made of it is another one than what was admitted.
    works: fn(&Value) -> bool,
    /// The model to try it with on LiteLLM itself.
    model: &'static str,
    /// The status of Sluice and what its message names; `None`: it passes, and the trick is gone.
    refused: Option<(u16, &'static str)>,
}

fn chat_with(client: &Client, model: &str, field: &str, value: Value) -> RequestBuilder {
    client.chat_request(Chat::to(model).with(field, value).text())
}

fn asks_for(model: &str) -> impl Fn(&Value) -> bool {
    move |call| call["model"] == model
}

const TRICKS: &[Trick] = &[
    Trick {
        request: |client, model| {
            client
                .request(Method::POST, "/v1/chat/completions?model=secret")
                .header("content-type", "application/json")
                .body(Chat::to(model).text())
        },
        works: |call| asks_for(SECRET)(call),
        model: MODEL,
        refused: None,
    },
    Trick {
        // JSON to one reader and a form to another.
        request: |client, model| {
            let form = "&model=secret&prompt=hello&x=";
            let body = json!({"model": model, "prompt": "x", "user": form}).to_string();
            let request = client.request(Method::POST, "/v1/completions");
            request.header("content-type", "application/x-www-form-urlencoded").body(body)
        },
        works: |call| asks_for(SECRET)(call),
        model: MODEL,
        refused: Some((415, "content-type")),
    },
    Trick {
        request: |client, model| chat_with(client, model, "extra_body", json!({"max_tokens": 4000, "n": 9})),
        works: |call| call["max_tokens"] == 4000 && call["n"] == 9,
        model: MODEL,
        refused: Some((400, "extra_body")),
    },
    Trick {
        request: |client, model| {
            let fallbacks = json!({"fallbacks": [{model: [SECRET]}], "num_retries": 0});
            chat_with(client, model, "router_settings_override", fallbacks)
        },
        works: |call| asks_for(SECRET)(call),
        model: BROKEN,
        refused: Some((400, "router_settings_override")),
    },
    Trick {
        request: |client, model| chat_with(client, model, "fallbacks", json!([SECRET])),
        works: |call| asks_for(SECRET)(call),
        model: BROKEN,
        refused: Some((400, "fallbacks")),
    },
    Trick {
        request: |client, model| chat_with(client, model, "tags", json!([PAID])),
        works: |call| asks_for(PAID)(call),
        model: MODEL,
        refused: Some((400, "tags")),
    },
    Trick {
        request: |client, model| chat_with(client, model, "metadata", json!({"tags": [PAID]})),
        works: |call| asks_for(PAID)(call),
        model: MODEL,
        refused: Some((400, "metadata")),
    },
    Trick {
        request: |client, model| client.chat_request(Chat::to(model).text()).header("x-litellm-tags", PAID),
        works: |call| asks_for(PAID)(call),
        model: MODEL,
        refused: None,
    },
    Trick {
        request: |client, model| client.chat_request(Chat::to(&format!("{model},{SECRET}")).text()),
        works: |call| asks_for(SECRET)(call),
        model: BROKEN,
        refused: Some((404, "model")),
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_litellm_do_another_call_than_the_admitted_one_does_not_reach_it() {
    let folder = Folder::create("litellm-tricks-server").unwrap();
    let server = Upstream::scripted().await.unwrap();
    let deployment = |name: &str, model: &str, base: String, tag: &str| {
        let params = json!({"model": format!("openai/{model}"), "api_base": base, "api_key": "none", "tags": [tag]});
        json!({"model_name": name, "litellm_params": params})
    };
    let base = || format!("http://{}/v1", server.address());
    let nowhere = format!("http://127.0.0.1:{}/v1", ports::free().unwrap());
    let config = json!({
        "model_list": [
            deployment(MODEL, OPEN, base(), "default"),
            deployment(MODEL, PAID, base(), PAID),
            deployment(SECRET, SECRET, base(), "default"),
            deployment(BROKEN, BROKEN, nowhere, "default"),
        ],
        "router_settings": {"enable_tag_filtering": true, "num_retries": 0},
    });
    let litellm = LiteLlm::configured(&folder, &config).await.unwrap();
    let stack = Stack::builder("litellm-tricks-stack")
        .served_by(&litellm.base())
        .tenant(Tenant::new("only"))
        .envoy_config(send_master_key)
        .start()
        .await
        .unwrap();
    let (direct, client) = (Client::new(&litellm.base()).unwrap().with_key(MASTER_KEY), stack.client("only").unwrap());
    assert_eq!(client.chat(&Chat::to(MODEL)).await.unwrap().status, 200);
    assert!(asks_for(OPEN)(&server.calls().last().unwrap().json()));

    let mut wrong = Vec::new();
    for (number, trick) in TRICKS.iter().enumerate() {
        let before = server.calls().count();
        let reply = send((trick.request)(&direct, trick.model)).await.unwrap();
        let seen: Vec<Value> = server.calls().all().iter().skip(before).map(Call::json).collect();
        if !seen.iter().any(|call| (trick.works)(call)) {
            wrong
                .push(format!("{number}: LiteLLM is not taken in, which proves nothing: {} {seen:?}", reply.summary()));
        }
        let before = server.calls().count();
        let reply = send((trick.request)(&client, MODEL)).await.unwrap();
        let seen: Vec<Value> = server.calls().all().iter().skip(before).map(Call::json).collect();
        let is_right = match trick.refused {
            Some((status, named)) => seen.is_empty() && reply.status == status && reply.text().contains(named),
            None => reply.status == 200 && seen.len() == 1 && seen.iter().all(asks_for(OPEN)),
        };
        if !is_right {
            wrong.push(format!("{number}: {} {seen:?}", reply.summary()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
