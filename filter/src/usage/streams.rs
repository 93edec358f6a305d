//! Whole streams, recorded and made up, in the shapes of vLLM, llama.cpp, OpenAI and Anthropic: wherever the network
//! cuts them, the usage is the same, and the client gets what the upstream sent but for the one event that was ours.

pub(crate) mod made_up;

use super::*;
use made_up::Stream;
use std::path::PathBuf;

const MADE_UP: u64 = 1_000;

fn head(content_type: &str) -> Head<'_> {
    Head { content_type: Some(content_type), ..Head::default() }
}

/// What a client gets, and what was read, when the stream comes in these pieces.
fn run<'a>(shape: Shape, drop_usage: bool, pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<u8>, Reading) {
    let mut meter = Meter::for_reply(shape, head("text/event-stream"), drop_usage, Sequences::ONE);
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

/// Cuts the stream in two at every byte, and into single bytes, and compares with what the whole gives.
fn assert_cuts_change_nothing(stream: &Stream, drop_usage: bool) {
    let text = stream.text.as_bytes();
    let expected = run(stream.shape, drop_usage, std::iter::once(text));
    let without_ours = if drop_usage { stream.without_usage_event() } else { stream.text.clone() };
    assert_eq!(String::from_utf8_lossy(&expected.0), without_ours, "{}", stream.name);
    assert_eq!(expected.1.reported, stream.reported, "{}: {}", stream.name, stream.text);
    for at in 0..=text.len() {
        let (head, tail) = text.split_at(at);
        assert_eq!(run(stream.shape, drop_usage, [head, tail].into_iter()), expected, "{} cut at {at}", stream.name);
    }
    assert_eq!(run(stream.shape, drop_usage, text.chunks(1)), expected, "{} byte by byte", stream.name);
}

#[test]
fn a_thousand_made_up_streams_give_the_same_usage_wherever_they_are_cut() {
    for seed in 0..MADE_UP {
        let stream = Stream::make_up(seed);
        // Only where OpenAI's streams are spoken is an event ever asked for.
        assert_cuts_change_nothing(&stream, stream.shape == Shape::OpenAi && seed % 2 == 0);
    }
}

#[test]
fn recorded_streams_give_the_same_usage_wherever_they_are_cut() {
    let counts = |input, output, cached| {
        let [input, output, cached] = [input, output, cached].map(Tokens);
        Some(Counts { input, output, cached, reasoning: Tokens::ZERO })
    };
    for (file, shape, reported) in [
        ("llamacpp/chat-stream-usage.captured-here.sse", Shape::OpenAi, counts(32, 12, 24)),
        ("llamacpp/anthropic-stream.captured-here.sse", Shape::Anthropic, counts(32, 8, 31)),
        ("vllm/chat-stream-continuous-usage.captured-here.sse", Shape::OpenAi, counts(20, 10, 0)),
    ] {
        let Some(text) = recording(file) else { continue };
        let stream = Stream { name: file.to_owned(), text, shape, reported };
        for drop_usage in [false, shape == Shape::OpenAi] {
            assert_cuts_change_nothing(&stream, drop_usage);
        }
    }
}

/// A recording from the folder that `SLUICE_TEST_DATA` names; recordings are not part of this repository.
fn recording(file: &str) -> Option<String> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");
    let folder = std::env::var_os("SLUICE_TEST_DATA").map_or_else(|| PathBuf::from(default), PathBuf::from);
    let text = std::fs::read_to_string(folder.join(file)).ok();
    if text.is_none() {
        println!("SKIPPED: no {file} in {}; SLUICE_TEST_DATA names the folder", folder.display());
    }
    text
}

/// Streams whose every chunk tells its usage or bears one token, each broken off at a random moment: what is charged is
/// never less than what was delivered, nor more than a chunk beyond it.
#[test]
fn ten_thousand_streams_that_break_off_are_charged_for_what_was_delivered_and_at_most_a_chunk_more() {
    use made_up::Kind;
    for seed in 0..10_000 {
        let kinds = [Kind::Vllm, Kind::VllmOfThree, Kind::Sglang, Kind::ChatToken, Kind::CompletionToken];
        let kind = kinds[usize::try_from(seed % 5).unwrap()];
        let sequences = match kind {
            Kind::VllmOfThree => Sequences::of(1, 3),
            Kind::CompletionToken => Sequences::of(1, 2),
            Kind::Vllm | Kind::Sglang | Kind::ChatToken => Sequences::ONE,
        };
        let stream = made_up::countable(seed, kind);
        let (at, piece_bytes) = made_up::moment(seed, stream.text.len());
        let asked_by_us = seed % 3 == 0;
        let mut meter = Meter::for_reply(Shape::OpenAi, head("text/event-stream"), asked_by_us, sequences);
        for piece in stream.text.as_bytes().split_at(at).0.chunks(piece_bytes) {
            meter.read(piece);
        }
        let reading = meter.reading();
        let charged = reading.reported.map_or(0, |counts| counts.output.0) + reading.counted.0;
        let whole = stream.chunks.iter().take_while(|(end, _)| *end <= at).count();
        let up_to =
            |chunks: usize| chunks.checked_sub(1).and_then(|last| stream.chunks.get(last)).map_or(0, |chunk| chunk.1);
        let delivered = up_to(whole);
        let a_chunk_more = up_to((whole + 1).min(stream.chunks.len()));
        assert!((delivered..=a_chunk_more).contains(&charged), "{kind:?} {seed} at {at}: {charged} for {delivered}");
    }
}

/// Ten times the bytes, in whatever pieces they come, are ten times the work. What the readers do with a byte is counted,
/// so a busy machine changes nothing, and the bound may be tight.
#[test]
fn a_line_of_a_mebibyte_costs_ten_times_one_of_a_tenth() {
    const LONG_BYTES: usize = 1 << 20;
    const SHORT_BYTES: usize = LONG_BYTES / 10;
    let text = |bytes| "x".repeat(bytes);
    let words = |bytes| "{\"}\\n".repeat(bytes / 6);
    let braces = |bytes| "{}".repeat(bytes / 2);
    let chat = |text: String| format!("data: {{\"choices\":[{{\"delta\":{{\"content\":{}}}}}]}}\n\n", json_text(&text));
    let document = |text: String| format!("{{\"choices\":[{{\"message\":{{\"content\":{}}}}}]}}", json_text(&text));
    let lines: [(&str, &str, Write<'_>); 7] = [
        ("content", "text/event-stream", &|bytes| chat(text(bytes))),
        ("escapes", "text/event-stream", &|bytes| chat(words(bytes))),
        ("objects", "text/event-stream", &|bytes| format!("data: {}\n\n", braces(bytes))),
        ("lines", "text/event-stream", &|bytes| format!("{}\n", "data: {\n".repeat(bytes / 8))),
        ("a comment", "text/event-stream", &|bytes| format!(": {}\n\n", text(bytes))),
        ("a reply", "application/json", &|bytes| document(text(bytes))),
        ("a reply with escapes", "application/json", &|bytes| document(words(bytes))),
    ];
    for (name, kind, line) in lines {
        for (shape, drop_usage) in [(Shape::OpenAi, true), (Shape::Anthropic, false)] {
            for piece_bytes in [1, 1_000, usize::MAX] {
                let cost = |bytes: usize| {
                    let line = line(bytes);
                    let mut meter = Meter::for_reply(shape, head(kind), drop_usage, Sequences::ONE);
                    work::of(|| {
                        for piece in line.as_bytes().chunks(piece_bytes) {
                            meter.read(piece);
                        }
                        meter.finish();
                    })
                };
                let (short, long) = (cost(SHORT_BYTES), cost(LONG_BYTES));
                assert!(short >= SHORT_BYTES as u64 / 2, "{name}: every byte is looked at: {short}");
                assert!(long * 100 <= short * 1_005, "{name} by {piece_bytes}: {long} after {short}");
            }
        }
    }
}

/// A line of about so many bytes.
type Write<'a> = &'a dyn Fn(usize) -> String;

fn json_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
