use super::*;
use crate::usage::Counts;
use proptest::prelude::*;
use serde_json::json;
use sluice_policy::units::Tokens;

const USAGE: &str = r#"{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}"#;

fn content(text: &str) -> String {
    format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}],\"usage\":null}}\n\n")
}

fn usage_only() -> String {
    format!("data: {{\"choices\":[],\"usage\":{USAGE}}}\n\n")
}

fn stream() -> String {
    let role = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
    let done = "data: [DONE]\n\n";
    [": hello\n\n", role, &content("One"), &content(" two"), &content("\u{e9}"), &usage_only(), done].concat()
}

/// What a client gets, and what was read, when the stream comes in these pieces.
fn run(drop_usage: bool, pieces: &[&[u8]]) -> (Vec<u8>, Reading) {
    let mut meter = SseMeter::new(Shape::OpenAi, drop_usage, Sequences::ONE);
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

fn reported(output: u64) -> Option<Counts> {
    Some(Counts { input: Tokens(7), output: Tokens(output), ..Counts::default() })
}

#[test]
fn the_event_that_we_asked_for_is_taken_out_and_nothing_else() {
    let whole = stream();
    let (seen, reading) = run(true, &[whole.as_bytes()]);
    assert_eq!(String::from_utf8(seen).unwrap(), whole.replace(&usage_only(), ""));
    assert_eq!(reading, Reading { reported: reported(3), counted: Tokens::ZERO });
}

#[test]
fn a_client_that_asked_for_usage_gets_it() {
    let whole = stream();
    let (seen, reading) = run(false, &[whole.as_bytes()]);
    assert_eq!(seen, whole.as_bytes());
    assert_eq!(reading.reported, reported(3));
}

#[test]
fn every_cut_gives_the_same_output_and_the_same_usage() {
    for line_end in ["\n", "\r\n", "\r"] {
        let whole = stream().replace('\n', line_end);
        for drop_usage in [false, true] {
            let expected = run(drop_usage, &[whole.as_bytes()]);
            assert_eq!(expected.1.reported, reported(3));
            for at in 0..=whole.len() {
                let (head, tail) = whole.as_bytes().split_at(at);
                assert_eq!(run(drop_usage, &[head, tail]), expected, "cut at {at}");
            }
            let bytes: Vec<&[u8]> = whole.as_bytes().chunks(1).collect();
            assert_eq!(run(drop_usage, &bytes), expected);
        }
    }
}

#[test]
fn the_usage_event_is_taken_out_whole_whatever_ends_its_lines() {
    for line_end in ["\n", "\r\n", "\r"] {
        let with_ends = |text: &str| text.replace('\n', line_end);
        let (seen, reading) = run(true, &[with_ends(&stream()).as_bytes()]);
        assert_eq!(String::from_utf8(seen).unwrap(), with_ends(&stream().replace(&usage_only(), "")));
        assert_eq!(reading, Reading { reported: reported(3), counted: Tokens::ZERO });
    }
}

#[test]
fn an_event_does_not_wait_for_the_line_feed_that_may_follow_its_carriage_return() {
    let mut meter = SseMeter::new(Shape::OpenAi, true, Sequences::ONE);
    let event = content("One").replace('\n', "\r");
    assert_eq!(meter.read(event.as_bytes()), Passage::Replaced(event.clone().into_bytes()));
    assert_eq!(meter.read(b""), Passage::Replaced(Vec::new()));
    assert_eq!(meter.read(b"\n: next"), Passage::Replaced(b"\n".to_vec()));
    let usage = usage_only().replace('\n', "\r");
    let mut meter = SseMeter::new(Shape::OpenAi, true, Sequences::ONE);
    assert_eq!(meter.read(usage.as_bytes()), Passage::Replaced(Vec::new()));
    assert_eq!(meter.read(b"\n\r"), Passage::Replaced(b"\r".to_vec()));
}

#[test]
fn only_an_incomplete_event_is_held_back() {
    let mut meter = SseMeter::new(Shape::OpenAi, true, Sequences::ONE);
    let first = content("One");
    assert_eq!(meter.read(first.as_bytes()), Passage::Replaced(first.clone().into_bytes()));
    assert_eq!(meter.read(b"data: {\"cho"), Passage::Replaced(Vec::new()));
    assert_eq!(meter.finish(), b"data: {\"cho");
}

#[test]
fn an_event_that_cannot_be_ours_is_not_held_until_its_end() {
    let content = content("One");
    let usage = usage_only();
    for (event, is_held) in [
        ("data: [DONE]", false),
        ("data: [D", false),
        (content.trim_end(), false),
        ("data: {\"error\":{\"message\":\"}\"}}", false),
        ("data: {\"error\":{\"message\":\"}", true),
        ("event: error\ndata: ", true),
        (usage.trim_end(), true),
    ] {
        let mut meter = SseMeter::new(Shape::OpenAi, true, Sequences::ONE);
        let passed = if is_held { Vec::new() } else { event.as_bytes().to_vec() };
        assert_eq!(meter.read(event.as_bytes()), Passage::Replaced(passed), "{event}");
        let rest = if is_held && event != usage.trim_end() { event } else { "" };
        assert_eq!(meter.finish(), rest.as_bytes(), "{event}");
    }
    let mut meter = SseMeter::new(Shape::OpenAi, true, Sequences::ONE);
    meter.read(b"data: [DO");
    assert_eq!(meter.read(b"NE]\n"), Passage::Replaced(b"NE]\n".to_vec()));
    assert_eq!(meter.read(b"\n"), Passage::Replaced(b"\n".to_vec()));
    assert_eq!(meter.finish(), b"");
}

#[test]
fn a_stream_that_ends_without_an_empty_line_is_read_to_its_end() {
    let whole = stream().replace("data: [DONE]\n\n", "");
    let (seen, reading) = run(true, &[whole.trim_end().as_bytes()]);
    assert_eq!(reading.reported, reported(3));
    assert!(!String::from_utf8(seen).unwrap().contains("prompt_tokens"));
}

#[test]
fn the_last_usage_counts_and_a_usage_with_choices_stays() {
    let both = "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":1}}\n\n";
    let whole = [both, &usage_only()].concat();
    let (seen, reading) = run(true, &[whole.as_bytes()]);
    assert_eq!(seen, both.as_bytes());
    assert_eq!(reading.reported, reported(3));
}

#[test]
fn a_usage_event_whose_one_choice_bears_nothing_is_ours_too() {
    let event = |choice: &str| format!("data: {{\"choices\":[{choice}],\"usage\":{USAGE}}}\n\n");
    for (choice, is_ours) in [
        (r#"{"index":0,"delta":{}}"#, true),
        (r#"{"index":0,"delta":{},"finish_reason":null}"#, true),
        (r#"{"index":0,"delta":{},"finish_reason":"stop"}"#, false),
        (r#"{"index":0,"delta":{"content":""}}"#, false),
        (r#"{"index":0,"text":""}"#, false),
    ] {
        let (seen, reading) = run(true, &[event(choice).as_bytes()]);
        assert_eq!((seen.is_empty(), reading.reported), (is_ours, reported(3)), "{choice}");
    }
}

#[test]
fn usage_that_cannot_be_true_leaves_the_count() {
    let whole = stream().replace(USAGE, r#"{"prompt_tokens":-7,"completion_tokens":-3}"#);
    assert_eq!(run(true, &[whole.as_bytes()]).1, Reading { reported: None, counted: Tokens(3) });
    let output = stream().replace(USAGE, r#"{"prompt_tokens":7,"completion_tokens":-3}"#);
    let Reading { reported: Some(counts), counted } = run(true, &[output.as_bytes()]).1 else {
        panic!("input is told")
    };
    assert_eq!((counts.input, counts.output, counted), (Tokens(7), Tokens(0), Tokens(3)));
}

#[test]
fn content_reasoning_and_tool_calls_count_as_output() {
    for (delta, tokens) in [
        (r#"{"content":""}"#, 0),
        (r#"{"content":null,"tool_calls":[]}"#, 0),
        (r#"{"content":"x"}"#, 1),
        (r#"{"content":"0123456789abcdefg"}"#, 1),
        (r#"{"reasoning_content":"hm"}"#, 1),
        (r#"{"tool_calls":[{"i":1}]}"#, 1),
        (r#"{"content":7}"#, 1),
    ] {
        let event = format!("data:{{\"choices\":[{{\"delta\":{delta}}}]}}\n\n");
        assert_eq!(run(false, &[event.as_bytes()]).1.counted, Tokens(tokens), "{delta}");
    }
}

#[test]
fn data_on_several_lines_is_one_event() {
    let event = format!("event: x\ndata: {{\"choices\":[],\ndata: \"usage\":{USAGE}}}\n\n");
    let (seen, reading) = run(true, &[event.as_bytes()]);
    assert_eq!((seen.len(), reading.reported), (0, reported(3)));
}

#[test]
fn an_event_beyond_the_bound_passes_unread_and_the_next_one_is_read() {
    let large = content(&"x".repeat(EVENT_MAX_BYTES));
    let whole = [large.as_str(), &usage_only()].concat();
    for size in [1000, EVENT_MAX_BYTES + 7, whole.len()] {
        let pieces: Vec<&[u8]> = whole.as_bytes().chunks(size).collect();
        let (seen, reading) = run(true, &pieces);
        assert_eq!(seen, large.as_bytes(), "pieces of {size}");
        assert_eq!(reading, Reading { reported: reported(3), counted: Tokens::ZERO });
    }
}

proptest! {
    #[test]
    fn any_bytes_pass_unchanged_unless_they_are_the_usage_event(pieces: Vec<Vec<u8>>) {
        let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        prop_assert_eq!(run(true, &pieces).0, pieces.concat());
    }

    #[test]
    fn any_lines_in_any_pieces_give_what_the_whole_gives(
        lines in proptest::collection::vec("(data: ?\\{\"choices\":\\[\\],\"usage\":\\{\"prompt_tokens\":1,\"completion_tokens\":2\\}\\}|data: x|:|\r|)", 0..12),
        size in 1usize..40,
        line_end in proptest::sample::select(vec!["\n", "\r\n", "\r", "\n\r"]),
    ) {
        let whole = lines.join(line_end);
        let pieces: Vec<&[u8]> = whole.as_bytes().chunks(size).collect();
        prop_assert_eq!(run(true, &pieces), run(true, &[whole.as_bytes()]));
    }
}

fn of_choice(index: u32, text: &str, usage: Option<(u64, u64)>) -> String {
    let usage = usage.map(|(input, output)| json!({"prompt_tokens": input, "completion_tokens": output}));
    let choices = json!([{"index": index, "text": text, "finish_reason": null}]);
    format!("data: {}\n\n", json!({"choices": choices, "usage": usage}))
}

fn of_all(input: u64, output: u64) -> String {
    let usage = json!({"prompt_tokens": input, "completion_tokens": output});
    format!("data: {}\n\n", json!({"choices": [], "usage": usage}))
}

fn of_sequences(sequences: Sequences, stream: &[String]) -> (u64, u64, u64) {
    let mut meter = SseMeter::new(Shape::OpenAi, false, sequences);
    stream.iter().for_each(|event| drop(meter.read(event.as_bytes())));
    let reading = meter.reading();
    let counts = reading.reported.unwrap_or_default();
    (counts.input.0, counts.output.0, reading.counted.0)
}

/// vLLM, told to report with every chunk.
#[test]
fn choices_that_report_one_by_one_are_added_up_until_a_report_of_all_comes() {
    let two_of_each_prompt = Sequences::of(2, 4);
    let mut stream = vec![
        of_choice(0, "a", Some((5, 1))),
        of_choice(1, "b", Some((5, 3))),
        of_choice(3, "c", Some((70, 2))),
        of_choice(0, "d", Some((5, 4))),
        of_choice(2, "e", None),
    ];
    assert_eq!(of_sequences(two_of_each_prompt, &stream), (75, 9, 1));
    stream.push(of_all(75, 11));
    assert_eq!(of_sequences(two_of_each_prompt, &stream), (75, 11, 0));
    // A call of one sequence has one choice, whatever it is called.
    let odd = [of_choice(7, "a", Some((5, 1))), of_choice(8, "b", Some((5, 2)))];
    assert_eq!(of_sequences(Sequences::ONE, &odd), (5, 2, 0));
}

/// LiteLLM's own usage event has a bare choice; others put the sum beside the last choice's end.
#[test]
fn a_sum_that_comes_with_a_choice_covers_all_choices() {
    for sum in [r#"{"index":0,"delta":{}}"#, r#"{"index":1,"text":"","finish_reason":"stop"}"#] {
        let words = (0..10).flat_map(|_| [of_choice(0, "w", None), of_choice(1, "w", None)]);
        let sum =
            format!("data: {{\"choices\":[{sum}],\"usage\":{{\"prompt_tokens\":5,\"completion_tokens\":20}}}}\n\n");
        let stream: Vec<String> = words.chain([sum]).collect();
        assert_eq!(of_sequences(Sequences::of(1, 2), &stream), (5, 20, 0));
    }
}

/// llama.cpp: each choice ends with an event that tells its own usage, and not whose it is.
#[test]
fn of_several_choices_no_fewer_tokens_are_charged_than_pieces_came() {
    let words = |index| (0..10).map(move |_| of_choice(index, "w", None));
    let stream: Vec<String> = words(0).chain([of_all(5, 10)]).chain(words(1)).chain([of_all(5, 10)]).collect();
    let (input, output, counted) = of_sequences(Sequences::of(1, 2), &stream);
    assert_eq!((input, output + counted), (5, 20));
}
