//! What a call is charged, by what its server reports: every dialect, as a stream and as a document, with every oddity that
//! servers were seen to write. The rule is that of docs/DIALECTS.md: never free, no estimate above what was asked for, and
//! each total believed wherever it can be true.

use super::*;
use sluice_policy::wire::Usage;

const WORDS: [&str; 5] = ["one ", "two ", "three ", "four ", "five "];
/// As its server would count them.
const INPUT: u64 = 32;
const OUTPUT: u64 = 9;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Api {
    Chat,
    Completions,
    Responses,
    Anthropic,
    Embeddings,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Document,
    Stream,
}

/// What is charged of a row; `None` is our own count.
#[derive(Clone, Copy, Debug)]
struct Charge {
    input: Option<u64>,
    output: Option<u64>,
    cached: u64,
    reasoning: u64,
}

const AS_TOLD: Charge = Charge { input: Some(INPUT), output: Some(OUTPUT), cached: 0, reasoning: 0 };
const OUR_COUNT: Charge = Charge { input: None, output: None, ..AS_TOLD };
const OUR_INPUT: Charge = Charge { input: None, ..AS_TOLD };
const OUR_OUTPUT: Charge = Charge { output: None, ..AS_TOLD };

/// A change of a right report, in which `in`, `out`, `in_details` and `out_details` stand for the dialect's own names.
type Oddity = (&'static str, Value, Charge);

impl Api {
    const ALL: [Api; 5] = [Api::Chat, Api::Completions, Api::Responses, Api::Anthropic, Api::Embeddings];

    fn dialect(self) -> &'static str {
        match self {
            Api::Chat => "openai_chat",
            Api::Completions => "openai_completions",
            Api::Responses => "openai_responses",
            Api::Anthropic => "anthropic_messages",
            Api::Embeddings => "openai_embeddings",
        }
    }

    fn request(self, form: Form, more: &str) -> String {
        let prompt = match self {
            Api::Chat | Api::Anthropic => r#""messages":[{"role":"user","content":"Count to five."}]"#,
            Api::Completions => r#""prompt":"Count to five.""#,
            Api::Responses | Api::Embeddings => r#""input":"Count to five.""#,
        };
        let stream = if form == Form::Stream { r#""stream":true,"# } else { "" };
        format!(r#"{{"model":"m",{stream}{more}{prompt}}}"#)
    }

    fn named(self, name: &str) -> &str {
        let of_responses = matches!(self, Api::Responses | Api::Anthropic);
        match name {
            "in" if of_responses => "input_tokens",
            "in" => "prompt_tokens",
            "out" if of_responses => "output_tokens",
            "out" => "completion_tokens",
            "in_details" if of_responses => "input_tokens_details",
            "in_details" => "prompt_tokens_details",
            "out_details" if of_responses => "output_tokens_details",
            "out_details" => "completion_tokens_details",
            other => other,
        }
    }

    /// A right report with an oddity in it. "absent" takes a field out.
    fn usage(self, oddity: &Value) -> Value {
        let Value::Object(changes) = oddity else { return oddity.clone() };
        let mut usage = json!({});
        usage[self.named("in")] = json!(INPUT);
        if self != Api::Embeddings {
            usage[self.named("out")] = json!(OUTPUT);
        }
        for (name, value) in changes {
            match value {
                value if value == "absent" => drop(usage.as_object_mut().unwrap().remove(self.named(name))),
                value => usage[self.named(name)] = value.clone(),
            }
        }
        usage
    }

    fn document(self, usage: &Value) -> String {
        let text = WORDS.concat();
        let reply = match self {
            Api::Chat => json!({"choices": [{"index": 0, "message": {"content": text}}], "usage": usage}),
            Api::Completions => json!({"choices": [{"index": 0, "text": text}], "usage": usage}),
            Api::Responses => json!({"error": null, "output": [{"content": [{"text": text}]}], "usage": usage}),
            Api::Anthropic => json!({"type": "message", "content": [{"type": "text", "text": text}], "usage": usage}),
            Api::Embeddings => json!({"object": "list", "data": [{"embedding": [0.5, 0.25]}], "usage": usage}),
        };
        reply.to_string()
    }

    fn stream(self, usage: &Value) -> String {
        let word = |word: &&str| match self {
            Api::Chat => json!({"choices": [{"index": 0, "delta": {"content": word}}]}),
            Api::Completions => json!({"choices": [{"index": 0, "text": word}]}),
            Api::Responses => json!({"type": "response.output_text.delta", "delta": word}),
            Api::Anthropic | Api::Embeddings => json!({"type": "content_block_delta", "delta": {"text": word}}),
        };
        let last = match self {
            Api::Chat | Api::Completions | Api::Embeddings => json!({"choices": [], "usage": usage}),
            Api::Responses => json!({"type": "response.completed", "response": {"usage": usage}}),
            Api::Anthropic => json!({"type": "message_delta", "delta": {}, "usage": usage}),
        };
        let events = WORDS.iter().map(word).chain([last]);
        events.map(|event| format!("data: {event}\n\n")).collect()
    }
}

/// A whole call: what it asked for, and what it was charged.
fn charged(api: Api, form: Form, more: &str, reply: &str) -> (u64, Outcome, Usage) {
    let mut world = World::with(|document| document["routes"] = json!([{"path": PATH, "dialect": api.dialect()}]));
    let estimate = world.asked(&api.request(form, more)).input_tokens;
    assert!(matches!(world.answer(&admitted()), Step::Forward { .. }));
    let kind = if form == Form::Stream { "text/event-stream" } else { "application/json" };
    world.reply_headers(&[(":status", "200"), ("content-type", kind)]);
    world.reply_body(reply, true);
    let [settlement] = world.settlements().try_into().unwrap();
    (estimate.0, settlement.outcome, settlement.usage)
}

/// Of every dialect.
fn oddities() -> Vec<Oddity> {
    vec![
        ("as it should be", json!({}), AS_TOLD),
        ("all zero", json!({"in": 0, "out": 0}), OUR_COUNT),
        ("input zero", json!({"in": 0}), OUR_INPUT),
        ("output zero", json!({"out": 0}), OUR_OUTPUT),
        ("input absent", json!({"in": "absent"}), OUR_INPUT),
        ("output absent", json!({"out": "absent"}), OUR_OUTPUT),
        ("input null", json!({"in": null}), OUR_INPUT),
        ("output null", json!({"out": null}), OUR_OUTPUT),
        ("input negative", json!({"in": -32}), OUR_INPUT),
        ("output negative", json!({"out": -9}), OUR_OUTPUT),
        ("input in parts", json!({"in": 32.5}), OUR_INPUT),
        ("output in parts", json!({"out": 9.5}), OUR_OUTPUT),
        ("both whole, with a point", json!({"in": 32.0, "out": 9.0}), AS_TOLD),
        ("input a text", json!({"in": "32"}), OUR_INPUT),
        ("output a list", json!({"out": [9]}), OUR_OUTPUT),
        ("input of 2^31", json!({"in": 2_147_483_648_u64}), OUR_INPUT),
        ("output of 2^31", json!({"out": 2_147_483_648_u64}), OUR_OUTPUT),
        ("output of 1e300", json!({"out": 1e300}), OUR_OUTPUT),
        ("null", json!(null), OUR_COUNT),
        ("empty", json!({"in": "absent", "out": "absent"}), OUR_COUNT),
        ("a list", json!([]), OUR_COUNT),
        ("a text", json!("none"), OUR_COUNT),
        ("a number", json!(41), OUR_COUNT),
        ("names that nobody knows", json!({"cost": 0.1, "num_tokens": 7, "prompt_time": null}), AS_TOLD),
        ("fewer tokens than words", json!({"out": 2}), Charge { output: Some(2), ..AS_TOLD }),
    ]
}

/// Of those that OpenAI's API has made.
fn details() -> Vec<Oddity> {
    let cached = |cached| Charge { cached, ..AS_TOLD };
    let thought = |output, reasoning| Charge { output: Some(output), reasoning, ..AS_TOLD };
    vec![
        ("cached", json!({"in_details": {"cached_tokens": 16}}), cached(16)),
        ("more cached than read", json!({"in_details": {"cached_tokens": 64}}), cached(INPUT)),
        ("cached negative", json!({"in_details": {"cached_tokens": -1}}), cached(0)),
        ("cached a text", json!({"in_details": {"cached_tokens": "16"}}), cached(0)),
        ("cached with a point", json!({"in_details": {"cached_tokens": 16.0}}), cached(16)),
        ("cached null", json!({"in_details": {"cached_tokens": null}}), cached(0)),
        ("cached at the top", json!({"cached_tokens": 16}), cached(16)),
        ("cached by DeepSeek", json!({"prompt_cache_hit_tokens": 16, "prompt_cache_miss_tokens": 16}), cached(16)),
        ("details null", json!({"in_details": null, "out_details": null}), AS_TOLD),
        ("details a number", json!({"in_details": 16, "out_details": 3}), AS_TOLD),
        ("details a list", json!({"in_details": [16], "out_details": []}), AS_TOLD),
        ("reasoning", json!({"out_details": {"reasoning_tokens": 3}}), thought(OUTPUT, 3)),
        ("reasoning at the top", json!({"reasoning_tokens": 3}), thought(OUTPUT, 3)),
        ("reasoning negative", json!({"out_details": {"reasoning_tokens": -3}}), AS_TOLD),
        ("more reasoning than output", json!({"out_details": {"reasoning_tokens": 94}}), thought(OUTPUT, OUTPUT)),
        (
            "reasoning beside the output",
            json!({"out_details": {"reasoning_tokens": 94}, "total_tokens": 135}),
            thought(OUTPUT + 94, 94),
        ),
        (
            "a little reasoning beside the output",
            json!({"out_details": {"reasoning_tokens": 3}, "total_tokens": 44}),
            thought(OUTPUT + 3, 3),
        ),
        (
            "reasoning within, and the sum",
            json!({"out_details": {"reasoning_tokens": 3}, "total_tokens": 41}),
            thought(OUTPUT, 3),
        ),
        ("the sum in place of the output", json!({"out": "absent", "total_tokens": 41}), AS_TOLD),
        ("the sum in place of the input", json!({"in": "absent", "total_tokens": 41}), AS_TOLD),
        ("the sum, and output zero", json!({"out": 0, "total_tokens": 41}), AS_TOLD),
        ("the sum too small", json!({"out": "absent", "total_tokens": 31}), OUR_OUTPUT),
        ("another sum", json!({"total_tokens": 99}), AS_TOLD),
        ("the sum alone", json!({"in": "absent", "out": "absent", "total_tokens": 41}), OUR_COUNT),
    ]
}

fn of_anthropic() -> Vec<Oddity> {
    let cached = |input, cached| Charge { input: Some(input), cached, ..AS_TOLD };
    vec![
        ("cached beside the input", json!({"cache_read_input_tokens": 1000}), cached(INPUT + 1000, 1000)),
        ("all of the input cached", json!({"in": 0, "cache_read_input_tokens": 1000}), cached(1000, 1000)),
        ("written to the cache", json!({"cache_creation_input_tokens": 5}), cached(INPUT + 5, 0)),
        ("cached negative", json!({"cache_read_input_tokens": -1}), AS_TOLD),
        ("cached null", json!({"cache_read_input_tokens": null, "cache_creation_input_tokens": null}), AS_TOLD),
        ("cached beyond 2^31 with the input", json!({"cache_read_input_tokens": 2_147_483_647}), OUR_INPUT),
    ]
}

fn of_embeddings() -> Vec<Oddity> {
    vec![
        ("the sum as well", json!({"total_tokens": 32}), AS_TOLD),
        ("the sum alone", json!({"in": "absent", "total_tokens": 32}), AS_TOLD),
        ("the sum, and input zero", json!({"in": 0, "total_tokens": 32}), AS_TOLD),
        ("output", json!({"completion_tokens": 7}), AS_TOLD),
    ]
}

fn rows() -> Vec<(Api, Form, Oddity)> {
    let mut rows = Vec::new();
    for api in Api::ALL {
        let forms: &[Form] = if api == Api::Embeddings { &[Form::Document] } else { &[Form::Document, Form::Stream] };
        let more = match api {
            Api::Chat | Api::Completions | Api::Responses => details(),
            Api::Anthropic => of_anthropic(),
            Api::Embeddings => of_embeddings(),
        };
        for form in forms {
            rows.extend(oddities().into_iter().chain(more.clone()).map(|oddity| (api, *form, oddity)));
        }
    }
    rows
}

#[test]
fn every_total_is_believed_where_it_can_be_true_and_no_call_is_free() {
    let rows = rows();
    assert!(rows.len() >= 150, "{} rows", rows.len());
    let mut wrong = Vec::new();
    for (api, form, (name, oddity, expected)) in rows {
        let usage = api.usage(&oddity);
        let (reply, counted) = match form {
            Form::Document => (api.document(&usage), 6),
            Form::Stream => (api.stream(&usage), 5),
        };
        let (estimate, outcome, usage) = charged(api, form, "", &reply);
        // An embedding has no output, whatever is said of it.
        let told = if api == Api::Embeddings { Some(0) } else { expected.output };
        let is_told = expected.input.is_some() && told.is_some();
        let expected = Usage {
            source: if is_told { UsageSource::Reported } else { UsageSource::Estimated },
            input: Tokens(expected.input.unwrap_or(estimate)),
            output: Tokens(told.unwrap_or(counted)),
            cached: Tokens(expected.cached),
            reasoning: Tokens(if api == Api::Embeddings { 0 } else { expected.reasoning }),
        };
        if (outcome, usage) != (Outcome::Completed, expected) {
            wrong.push(format!("{api:?} {form:?}, {name}: {outcome:?} {usage:?}, not {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The text of the replies is six tokens by our estimate in a document; a stream has five pieces.
#[test]
fn no_estimate_is_above_what_was_asked_for() {
    for (api, bound) in [
        (Api::Chat, "max_tokens"),
        (Api::Completions, "max_tokens"),
        (Api::Responses, "max_output_tokens"),
        (Api::Anthropic, "max_tokens"),
    ] {
        for (most, expected) in [(100, 6), (6, 6), (4, 4)] {
            let more = format!(r#""{bound}":{most},"#);
            let (_, _, usage) = charged(api, Form::Document, &more, &api.document(&json!(null)));
            assert_eq!((usage.source, usage.output), (UsageSource::Estimated, Tokens(expected)), "{api:?} {most}");
        }
        // What a server reports is its own, also where it obeys no bound.
        let (_, _, usage) =
            charged(api, Form::Document, &format!(r#""{bound}":4,"#), &api.document(&api.usage(&json!({}))));
        assert_eq!((usage.source, usage.output), (UsageSource::Reported, Tokens(OUTPUT)), "{api:?}");
    }
    // So much text is no four tokens: this server does not read the bound.
    let long = json!({"choices": [{"message": {"content": "x".repeat(864)}}]}).to_string();
    let (_, _, usage) = charged(Api::Chat, Form::Document, r#""max_tokens":4,"#, &long);
    assert_eq!(usage.output, Tokens(100));
}

#[test]
fn a_prompt_that_is_repeated_is_no_output() {
    let echoed = json!({"choices": [{"text": "x".repeat(864)}]});
    for usage in [json!(null), json!({"prompt_tokens": INPUT, "completion_tokens": 0})] {
        let mut reply = echoed.clone();
        reply["usage"] = usage;
        let (_, _, usage) =
            charged(Api::Completions, Form::Document, r#""echo":true,"max_tokens":3,"#, &reply.to_string());
        assert_eq!(usage.output, Tokens(3), "at most what was asked for");
    }
}

/// Errors in the clothes of a success, in every dialect and form.
#[test]
fn an_error_is_no_success_whatever_its_status_says_and_costs_what_was_written_before_it() {
    let error = json!({"error": {"message": "out of memory", "code": 500}});
    for api in Api::ALL {
        for error in [error.clone(), json!({"error": "out of memory"}), json!({"object": "error", "message": "x"})] {
            let (_, outcome, usage) = charged(api, Form::Document, "", &error.to_string());
            let is_known = api != Api::Anthropic || error.get("error").is_some();
            assert!(is_known || outcome == Outcome::Failed);
            assert_eq!((outcome, usage), (Outcome::Failed, Usage::default()), "{api:?} {error}");
        }
        if api == Api::Embeddings {
            continue;
        }
        let event = format!("event: error\ndata: {error}\n\n");
        let alone = format!("{event}data: [DONE]\n\n");
        let (_, outcome, usage) = charged(api, Form::Stream, "", &alone);
        assert_eq!((outcome, usage), (Outcome::Failed, Usage::default()), "{api:?}");
        let (_, outcome, usage) = charged(api, Form::Stream, "", &error.to_string());
        assert_eq!((outcome, usage), (Outcome::Failed, Usage::default()), "{api:?}: a document for a stream");
        let words = api.stream(&json!(null));
        let (estimate, outcome, usage) = charged(api, Form::Stream, "", &format!("{words}{alone}"));
        assert_eq!((outcome, usage.input, usage.output), (Outcome::Failed, Tokens(estimate), Tokens(5)), "{api:?}");
        let words = api.stream(&api.usage(&json!({})));
        let (_, outcome, usage) = charged(api, Form::Stream, "", &format!("{words}{alone}"));
        assert_eq!((outcome, usage.source, usage.output), (Outcome::Failed, UsageSource::Reported, Tokens(OUTPUT)));
    }
    let none = json!({"error": null, "choices": [{"message": {"content": "hi"}}]});
    assert_eq!(charged(Api::Chat, Form::Document, "", &none.to_string()).1, Outcome::Completed);
}

#[test]
fn what_no_model_wrote_costs_nothing() {
    let page = "<!doctype html><title>Sign in</title>";
    for (status, kind, body) in [
        ("301", "text/html", page),
        ("302", "text/plain", "moved"),
        ("307", "application/json", ""),
        ("204", "application/json", ""),
        ("304", "application/json", ""),
        ("200", "text/html", page),
        ("200", "text/html; charset=utf-8", "<a href=/login>here</a>"),
        ("200", "text/plain", page),
        ("200", "application/json", page),
    ] {
        for api in Api::ALL {
            // Bytes that say of themselves that they are plain are an embedding, whatever they look like.
            if (api, kind, status) == (Api::Embeddings, "text/plain", "200") {
                continue;
            }
            let mut world =
                World::with(|document| document["routes"] = json!([{"path": PATH, "dialect": api.dialect()}]));
            world.admitted(&api.request(Form::Document, ""));
            world.reply_headers(&[(":status", status), ("content-type", kind)]);
            world.reply_body(body, true);
            assert_eq!(world.settled(), (Outcome::Failed, UsageSource::None, 0, 0), "{api:?} {status} {kind}");
        }
    }
}

/// Without a content type, under a wrong one, and with something that is no encoding.
#[test]
fn a_stream_and_a_document_are_read_under_any_label() {
    for api in [Api::Chat, Api::Completions, Api::Responses, Api::Anthropic] {
        for form in [Form::Document, Form::Stream] {
            for kind in [None, Some("text/plain; charset=utf-8"), Some("application/octet-stream"), Some("text/html")] {
                for encoding in ["identity", "none", "utf-8", ""] {
                    let mut world =
                        World::with(|document| document["routes"] = json!([{"path": PATH, "dialect": api.dialect()}]));
                    world.admitted(&api.request(form, ""));
                    let mut head = vec![(":status", "200"), ("content-encoding", encoding), ("content-length", "999")];
                    head.extend(kind.map(|kind| ("content-type", kind)));
                    let edits = world.reply_headers(&head);
                    let usage = api.usage(&json!({}));
                    let reply = if form == Form::Stream { api.stream(&usage) } else { api.document(&usage) };
                    let passage = world.reply_body(&reply, true);
                    let hides = form == Form::Stream && matches!(api, Api::Chat | Api::Completions);
                    let seen = if let Passage::Replaced(bytes) = passage { bytes } else { reply.into_bytes() };
                    let seen = String::from_utf8(seen).unwrap();
                    assert_eq!(seen.contains("usage"), !hides, "{api:?} {form:?} {kind:?} {encoding:?}");
                    assert_eq!(has_removed(&edits, "content-length"), hides, "{api:?} {form:?} {kind:?}");
                    let expected = (Outcome::Completed, UsageSource::Reported, INPUT, OUTPUT);
                    assert_eq!(world.settled(), expected, "{api:?} {form:?} {kind:?} {encoding:?}");
                }
            }
        }
    }
}

#[test]
fn embeddings_as_bytes_have_no_output_and_their_usage_stands_in_a_header() {
    let usage = r#"{"data":[],"usage":{"prompt_tokens":7,"total_tokens":7}}"#;
    for (metadata, source, input) in [
        (Some(usage), UsageSource::Reported, 7),
        (Some("{"), UsageSource::Estimated, 4),
        (None, UsageSource::Estimated, 4),
    ] {
        for bytes in ["\u{0}\u{1}\u{2}", "<!doctype html>", "{\"error\":1}", "data: {}\n\n"] {
            let mut world =
                World::with(|document| document["routes"] = json!([{"path": PATH, "dialect": "openai_embeddings"}]));
            world.admitted(&Api::Embeddings.request(Form::Document, ""));
            let mut head = vec![(":status", "200"), ("content-type", "application/octet-stream")];
            head.extend(metadata.map(|metadata| ("metadata", metadata)));
            world.reply_headers(&head);
            world.reply_body(&bytes.repeat(1000), true);
            assert_eq!(world.settled(), (Outcome::Completed, source, input, 0), "{metadata:?} {bytes:?}");
        }
    }
}

/// Anthropic's streams report twice.
#[test]
fn a_later_report_of_nothing_erases_nothing() {
    for (start, delta, expected) in [
        (json!({"input_tokens": 25, "output_tokens": 1}), json!({"input_tokens": 0, "output_tokens": 5}), (25, 5, 0)),
        (json!({"input_tokens": 0, "output_tokens": 0}), json!({"input_tokens": 25, "output_tokens": 5}), (25, 5, 0)),
        (
            json!({"input_tokens": 25, "cache_read_input_tokens": 1000, "output_tokens": 1}),
            json!({"input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 5}),
            (1025, 5, 1000),
        ),
        (json!({"input_tokens": 25, "output_tokens": 1}), json!({"output_tokens": 0}), (25, 6, 0)),
        (json!({"input_tokens": 25, "output_tokens": 1}), json!({}), (25, 6, 0)),
    ] {
        let begin = json!({"type": "message_start", "message": {"usage": start}});
        let events = format!("data: {begin}\n\n{}", Api::Anthropic.stream(&delta));
        let (_, _, usage) = charged(Api::Anthropic, Form::Stream, "", &events);
        assert_eq!((usage.input.0, usage.output.0, usage.cached.0), expected, "{events}");
    }
}

#[test]
fn a_response_whose_server_runs_tools_says_how_many_turns_it_may_have_taken() {
    for (more, turns) in [
        ("", 1),
        (r#""tools":[{"type":"function","name":"f"}],"#, 1),
        (r#""tools":[{"type":"web_search_preview"}],"#, 128),
        (r#""tools":[{"type":"function"},{"type":"code_interpreter"}],"max_tool_calls":9,"#, 10),
        (r#""tools":[{"type":"mcp"}],"max_tool_calls":100000,"#, 128),
        (r#""max_tool_calls":9,"#, 1),
    ] {
        let mut world =
            World::with(|document| document["routes"] = json!([{"path": PATH, "dialect": "openai_responses"}]));
        world.admitted(&Api::Responses.request(Form::Document, more));
        world.reply_headers(&[(":status", "200"), ("content-type", "application/json")]);
        world.reply_body(r#"{"usage":{"input_tokens":9000,"output_tokens":700}}"#, true);
        let [settlement] = world.settlements().try_into().unwrap();
        assert_eq!(settlement.charge_to.map(|charge_to| charge_to.turns), Some(turns), "{more}");
        assert_eq!(settlement.usage.input, Tokens(9000));
    }
}
