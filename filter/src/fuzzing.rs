//! Entrances for the fuzzer: each takes what a stranger or an upstream may send, and panics where a promise is broken.
//! Built with the feature `fuzzing` only.

use crate::caller;
use crate::config::Config;
use crate::dialect::{BodyEdit, Dialect, Levels, Reads, Rules, apply, grpc::Frames};
use crate::headers::Headers;
use crate::usage::{Head, Meter, Passage, Reading, Sequences, Shape};
use sluice_policy::units::{Priority, Tokens};

const SHAPES: [Shape; 5] = [Shape::OpenAi, Shape::Embeddings, Shape::Responses, Shape::Anthropic, Shape::Text];

/// A request's body, in each dialect that reads one: what is spliced into it must leave it JSON.
pub fn body(body: &[u8]) {
    for (_, dialect) in Dialect::all() {
        let Reads::Json(parse) = dialect.reads() else { continue };
        let rules = Rules { path_names_model: true, ..Rules::TEST };
        for levels in [None, Levels::new([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])] {
            let Ok(call) = parse(body, rules) else { continue };
            let usage = call.usage_request.map(|request| request.edit);
            let mut edits: Vec<_> = usage.into_iter().chain(call.limits.clamp(Tokens(5))).collect();
            edits.extend(call.model_place.map(|place| BodyEdit::rename(place, "other \"name\"")));
            if let Some(turn) = call.turn {
                turn.add_to(&mut edits, levels, Priority::LAST);
            }
            let edited = apply(body, edits).expect("edits fit the body that they were made for");
            assert!(parse(&edited, rules).is_ok(), "{}", String::from_utf8_lossy(&edited));
        }
    }
}

/// A JSON reply, in the dialect that the first byte chooses: cut anywhere it reads as the whole.
pub fn json_reply(input: &[u8]) {
    assert_cut_changes_nothing(input, "application/json", false);
    assert_cut_changes_nothing(input, "text/plain", true);
}

/// A stream of events: cut anywhere it reads as the whole, and nothing is lost but a usage event.
pub fn sse(input: &[u8]) {
    assert_cut_changes_nothing(input, "text/event-stream", false);
    assert_cut_changes_nothing(input, "text/event-stream", true);
}

/// Frames of a gRPC call: cut anywhere they read as the whole.
pub fn grpc_frames(input: &[u8]) {
    let Some((at, bytes)) = split(input) else { return };
    let read = |pieces: &[&[u8]]| {
        let mut frames = Frames::new(1 << 20);
        let ended = pieces.iter().try_for_each(|piece| frames.push(piece)).and_then(|()| frames.end());
        ended.map(|()| (frames.model().map(str::to_owned), frames.complete()))
    };
    let (head, tail) = bytes.split_at(at);
    assert_eq!(read(&[bytes]), read(&[head, tail]));
}

/// A key in each of the headers that may carry one.
pub fn key(value: &[u8]) {
    for name in ["authorization", "x-api-key"] {
        let headers = Headers::new(vec![(name.to_owned(), value.to_vec())]);
        let _ = caller::identify(&headers, &["authorization".to_owned(), "x-api-key".to_owned()]);
    }
}

/// The plugin's configuration.
pub fn plugin_config(text: &[u8]) {
    let _ = Config::parse(text);
}

/// The first byte says where the rest is cut.
fn split(input: &[u8]) -> Option<(usize, &[u8])> {
    let (at, bytes) = input.split_first()?;
    Some((usize::from(*at).min(bytes.len()), bytes))
}

fn assert_cut_changes_nothing(input: &[u8], kind: &str, drop_usage: bool) {
    let Some((choice, rest)) = input.split_first() else { return };
    let (is_of_many, shape) = (usize::from(*choice) / SHAPES.len(), usize::from(*choice) % SHAPES.len());
    let Some(shape) = SHAPES.get(shape).copied() else { return };
    let sequences = if is_of_many % 2 == 0 { Sequences::ONE } else { Sequences::of(2, 4) };
    let Some((at, bytes)) = split(rest) else { return };
    let (head, tail) = bytes.split_at(at);
    let run = |pieces: &[&[u8]]| run(Meter::for_reply(shape, head(kind), drop_usage, sequences), pieces);
    let whole = run(&[bytes]);
    assert_eq!(whole, run(&[head, tail]));
    assert!(drop_usage || whole.0 == bytes);
}

fn head(content_type: &str) -> Head<'_> {
    Head { content_type: Some(content_type), ..Head::default() }
}

fn run(mut meter: Meter, pieces: &[&[u8]]) -> (Vec<u8>, Reading) {
    let mut seen = Vec::new();
    for piece in pieces {
        match meter.read(piece) {
            Passage::Unchanged => seen.extend_from_slice(piece),
            Passage::Replaced(bytes) => seen.extend(bytes),
        }
    }
    seen.extend(meter.finish());
    (seen, meter.reading())
}
