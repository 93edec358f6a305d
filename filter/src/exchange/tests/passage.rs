//! Whatever a dialect's server replies, and wherever the network cuts it, the client gets it byte for byte, but for the
//! one event that we asked for.

use super::*;
use crate::dialect::{Dialect, Reads, grpc};
use crate::usage::streams::made_up::Stream;
use proptest::prelude::*;
use proptest::sample::select;

/// Where a dialect has no paths of its own.
const OWN_PATH: &str = "/own";
const EVENTS: &str = "text/event-stream";

/// A route for every dialect of the table, so that a new one is tested from its first day.
fn world() -> World {
    let routes: Vec<Value> = Dialect::all()
        .into_iter()
        .map(|(name, dialect)| match (dialect.paths(), dialect.reads()) {
            ([], _) => json!({"dialect": name, "path": OWN_PATH, "pool": "smol"}),
            (_, Reads::Length) if name == "openai_uploads" => json!({"dialect": name, "pool": "smol"}),
            _ => json!({"dialect": name}),
        })
        .collect();
    World::with(|document| document["routes"] = json!(routes))
}

fn path_of(dialect: Dialect) -> String {
    dialect.paths().first().unwrap_or(&OWN_PATH).replace("{model}", "m")
}

/// A request's body that every dialect of its kind can read.
fn body_of(dialect: Dialect, is_stream: bool, asks_for_usage: bool) -> Vec<u8> {
    match dialect.reads() {
        Reads::Json(_) => {
            let mut body = json!({"model": "m", "stream": is_stream});
            if asks_for_usage {
                body["stream_options"] = json!({"include_usage": true});
            }
            body.to_string().into_bytes()
        }
        Reads::Messages { .. } => grpc::message("m", &[]),
        Reads::Length | Reads::Models => b"any bytes".to_vec(),
    }
}

/// What an upstream replies, and what of it a client must get that has not asked for usage.
#[derive(Clone, Debug)]
struct Reply {
    kind: Option<&'static str>,
    encoding: Option<&'static str>,
    sent: Vec<u8>,
    without_ours: Vec<u8>,
    /// Every event has its end: before trailers nothing else is sure to pass.
    is_whole: bool,
}

/// Streams in every shape, documents, and any bytes under any label.
fn reply() -> impl Strategy<Value = Reply> {
    let stream = any::<u32>().prop_map(|seed| {
        let stream = Stream::make_up(u64::from(seed));
        let without_ours = stream.without_usage_event().into_bytes();
        Reply { kind: Some(EVENTS), encoding: None, sent: stream.text.into_bytes(), without_ours, is_whole: true }
    });
    let kind = select(vec![None, Some(EVENTS), Some("application/json"), Some("application/grpc"), Some("audio/mpeg")]);
    let encoding = select(vec![None, Some("identity"), Some("gzip"), Some("br")]);
    let documents = "\\{(\"usage\":\\{\"prompt_tokens\":1,\"completion_tokens\":2\\}|\"choices\":\\[\\]),?\\}\n{0,2}";
    let bytes = prop_oneof![proptest::collection::vec(any::<u8>(), 0..200), documents.prop_map(String::into_bytes)];
    let other = (kind, encoding, bytes).prop_map(|(kind, encoding, sent)| Reply {
        kind,
        encoding,
        without_ours: sent.clone(),
        is_whole: false,
        sent,
    });
    prop_oneof![stream, other]
}

/// How a reply comes to its end.
#[derive(Clone, Copy, Debug)]
enum End {
    WithTheLastPiece,
    AfterIt,
    Trailers,
}

/// What the client gets of a reply that comes in pieces of these lengths, over and over.
fn received(world: &mut World, reply: &Reply, lengths: &[usize], end: End) -> Vec<u8> {
    let mut head = vec![(":status", "200"), ("server", "theirs")];
    head.extend(reply.kind.map(|kind| ("content-type", kind)));
    head.extend(reply.encoding.map(|encoding| ("content-encoding", encoding)));
    for edit in world.reply_headers(&head) {
        let is_declared = edit.name().starts_with("x-") || edit.name().starts_with("anthropic-ratelimit-");
        assert!(is_declared || edit == HeaderEdit::Remove("content-length".to_owned()), "{edit:?}");
    }
    let (mut seen, mut rest) = (Vec::new(), reply.sent.as_slice());
    for length in lengths.iter().cycle() {
        let (piece, after) = rest.split_at((*length).min(rest.len()));
        rest = after;
        let is_last = rest.is_empty();
        let is_end = is_last && matches!(end, End::WithTheLastPiece);
        pass(world, piece, is_end, &mut seen);
        if is_last {
            break;
        }
    }
    match end {
        End::WithTheLastPiece => {}
        End::AfterIt => pass(world, &[], true, &mut seen),
        End::Trailers => world.exchange.reply_trailers(&headers_of(&[("x-sum", "1")]), &mut world.worker, NOW),
    }
    seen
}

fn pass(world: &mut World, piece: &[u8], is_end: bool, seen: &mut Vec<u8>) {
    match world.exchange.reply_body(piece, is_end, &mut world.worker, NOW) {
        Passage::Unchanged => seen.extend_from_slice(piece),
        Passage::Replaced(bytes) => seen.extend(bytes),
    }
}

/// A call that has gone upstream, and whether its stream was asked for its usage; `None` for what Sluice answers itself.
fn forwarded(name: &str, dialect: Dialect, is_stream: bool, asks_for_usage: bool) -> Option<(World, bool)> {
    let mut world = world();
    let path = path_of(dialect);
    let kind = if let Reads::Messages { .. } = dialect.reads() { "application/grpc" } else { "application/json" };
    let method = dialect.method().unwrap_or("POST");
    let step = world.head(&[
        (":method", method),
        (":path", path.as_str()),
        ("authorization", "Bearer sk-1"),
        ("content-type", kind),
    ]);
    if let Reads::Models = dialect.reads() {
        assert!(matches!(step, Step::List { .. }), "{name}: {step:?}");
        return None;
    }
    let body = body_of(dialect, is_stream, asks_for_usage);
    let step = match dialect.reads() {
        Reads::Messages { .. } => {
            world.exchange.request_body_piece(&body, body.len() as u64, true, &mut world.worker, NOW)
        }
        Reads::Json(_) | Reads::Length | Reads::Models => world.body(&body),
    };
    assert!(matches!(step, Step::Ask { .. }), "{name}: {step:?}");
    match world.answer(&admitted()) {
        Step::Forward { body, .. } => Some((world, !body.is_empty())),
        other => panic!("{name}: {other:?}"),
    }
}

proptest! {
    #[test]
    fn a_client_of_any_dialect_gets_what_the_upstream_sent_but_for_the_event_that_was_ours(
        reply in reply(),
        asks_for_usage: bool,
        is_stream: bool,
        lengths in proptest::collection::vec(1usize..60, 1..5),
        end in select(vec![End::WithTheLastPiece, End::AfterIt, End::Trailers]),
    ) {
        let end = if reply.is_whole { end } else { End::AfterIt };
        for (name, dialect) in Dialect::all() {
            let Some((mut world, is_asked)) = forwarded(name, dialect, is_stream, asks_for_usage) else { continue };
            let may_be_asked = ["openai_chat", "openai_completions"].contains(&name);
            prop_assert_eq!(is_asked, may_be_asked && is_stream && !asks_for_usage, "{}", name);
            let expected = if is_asked { &reply.without_ours } else { &reply.sent };
            let seen = received(&mut world, &reply, &lengths, end);
            prop_assert_eq!(String::from_utf8_lossy(&seen), String::from_utf8_lossy(expected), "{}", name);
            prop_assert_eq!(world.settlements().len(), 1, "{}", name);
        }
    }
}
