//! How far our estimate is off where a server reports no usage: against the count of the real model's own tokenizer.
//!
//! The texts go through Envoy and the filter as the reply of a server that reports nothing, and what was charged is read
//! from the service: as a document, as a stream of a token a piece, and as one of eight tokens a piece.

use super::texts::TEXTS;
use super::{Figure, PATIENCE, doing, figure};
use anyhow::{Context, Result, ensure};
use e2e::client::send;
use e2e::folder::Folder;
use e2e::stack::{MODEL, Model, Stack};
use e2e::tenant::Tenant;
use reqwest::Method;
use serde_json::{Value, json};

/// The forms of a reply, and how many tokens each piece of it has; `None`: it is one document.
const FORMS: [(&str, Option<usize>); 3] =
    [("document", None), ("token a piece", Some(1)), ("8 tokens a piece", Some(8))];
const PROMPT: &str = "prompt";
pub(super) const FIGURES: &[&str] = &["estimator_error"];

/// `quick`: the texts of one kind only.
pub(super) async fn measure(quick: bool) -> Result<Vec<Figure>> {
    doing("starting the real model, whose tokenizer counts");
    let folder = Folder::create("bench-estimator")?;
    let model = Model::start(&folder).await?;
    let stack = Stack::builder("bench-estimator-stack").workers(1).tenant(Tenant::new("only")).start().await?;
    let mut figures = Vec::new();
    for (kind, texts) in TEXTS.into_iter().take(if quick { 1 } else { TEXTS.len() }) {
        doing(format!("the estimate of texts: {kind}"));
        let mut errors = vec![Vec::new(); FORMS.len()];
        let mut of_prompts = Vec::new();
        for text in texts {
            let tokens = tokenize(&model, text).await?;
            for ((_, size), errors) in FORMS.into_iter().zip(&mut errors) {
                let charged =
                    charge(&stack, text, &pieces(&tokens, size.unwrap_or(tokens.len()))?, size.is_some()).await?;
                errors.push(percent_off(charged.output, tokens.len()));
                if size.is_none() {
                    of_prompts.push(percent_off(charged.input, tokens.len()));
                }
            }
        }
        let of_kind =
            |form, errors| Figure { dialect: Some(form), text: Some(kind), ..figure("estimator_error", "%", errors) };
        figures.push(of_kind(PROMPT, of_prompts));
        figures.extend(FORMS.into_iter().zip(errors).map(|((form, _), errors)| of_kind(form, errors)));
    }
    Ok(figures)
}

/// The bytes of each token of a text. A token may be a part of a character.
async fn tokenize(model: &Model, text: &str) -> Result<Vec<Vec<u8>>> {
    let question = json!({"content": text, "with_pieces": true});
    let http = reqwest::Client::new();
    let reply = http.post(format!("{}/tokenize", model.base())).json(&question).send().await?.error_for_status()?;
    let reply: Value = reply.json().await?;
    let tokens = reply["tokens"].as_array().context("no tokens")?;
    let bytes: Option<Vec<Vec<u8>>> = tokens.iter().map(|token| bytes_of(&token["piece"])).collect();
    let bytes = bytes.context("a token of another form")?;
    ensure!(bytes.concat() == text.as_bytes(), "the tokens are not those of the text");
    Ok(bytes)
}

fn bytes_of(piece: &Value) -> Option<Vec<u8>> {
    if let Some(text) = piece.as_str() {
        return Some(text.as_bytes().to_vec());
    }
    piece.as_array()?.iter().map(|byte| u8::try_from(byte.as_u64()?).ok()).collect()
}

/// So many tokens a piece, and more where a character would be torn: servers send whole ones.
fn pieces(tokens: &[Vec<u8>], size: usize) -> Result<Vec<String>> {
    let (mut pieces, mut open) = (Vec::new(), Vec::new());
    for few in tokens.chunks(size.max(1)) {
        open.extend(few.concat());
        if let Ok(text) = std::str::from_utf8(&open) {
            pieces.push(text.to_owned());
            open.clear();
        }
    }
    ensure!(open.is_empty(), "a text that ends within a character");
    Ok(pieces)
}

struct Charged {
    input: u64,
    output: u64,
}

/// What a call costs whose prompt and whose reply are this text.
async fn charge(stack: &Stack, prompt: &str, pieces: &[String], is_stream: bool) -> Result<Charged> {
    let before = stack.operators().metrics().await?;
    let method = if is_stream { "generate_stream" } else { "generate" };
    let path = format!("/v2/models/{MODEL}/{method}");
    let body = json!({"text_input": prompt, "metadata": {"behave": {"pieces": pieces}}});
    let reply = send(stack.client("only")?.request(Method::POST, &path).json(&body)).await?;
    ensure!(reply.status == 200, "{}", reply.summary());
    let estimated = [("usage", "estimated")];
    let calls = before.sum("sluice_settlements_total", &estimated) + 1;
    let after = stack
        .operators()
        .wait_for_metrics("the call is settled", PATIENCE, |metrics| {
            metrics.sum("sluice_settlements_total", &estimated) == calls
        })
        .await?;
    let tokens = |kind| {
        let labels = [("tenant", "only"), ("kind", kind)];
        after.sum("sluice_tokens_total", &labels) - before.sum("sluice_tokens_total", &labels)
    };
    Ok(Charged { input: tokens("input"), output: tokens("output") })
}

/// Positive where the estimate is above the count.
fn percent_off(estimate: u64, count: usize) -> f64 {
    (estimate as f64 / count as f64 - 1.0) * 100.0
}
