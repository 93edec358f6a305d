use super::*;
use serde_json::{Value, json};

fn tokens(value: &Value, at: At) -> u64 {
    let mut tally = Tally::default();
    Weigh { tally: Some(&mut tally), at }.deserialize(value).unwrap();
    tally.tokens()
}

const LONG_BYTES: u64 = 1_000_000;

/// Looks like a picture wherever it may stand, and has the weight of a long text where it is one.
fn long() -> String {
    format!("data:image/png;base64,{}", "A".repeat(usize::try_from(LONG_BYTES).unwrap()))
}

#[test]
fn what_looks_like_a_picture_is_a_text_wherever_no_picture_can_stand() {
    let user = |content: Value| json!([{"role": "user", "content": content}]);
    let call = |arguments: Value| json!([{"role": "assistant", "tool_calls": [{"function": arguments}]}]);
    for messages in [
        json!(long()),
        json!([long()]),
        user(json!(long())),
        user(json!([long()])),
        user(json!([{"type": "text", "text": long()}])),
        user(json!([{"type": "text", "image_embeds": long()}])),
        user(json!([{"image_embeds": {"x": long()}, "type": "text"}])),
        json!([{"role": "user", "image_embeds": long()}]),
        user(json!([{"type": "text", "text": long(), "image_url": {"url": "x"}}])),
        json!([{"role": "user", "data": long()}]),
        json!([{"role": "user", "source": {"data": long()}}]),
        json!([{"role": "user", "image_url": {"url": long()}}]),
        call(json!({"arguments": long()})),
        call(json!({"data": long()})),
        user(json!([{"type": "tool_use", "input": {"data": long()}}])),
        user(json!([{"type": "tool_use", "input": {"source": {"data": long()}}}])),
        user(json!([{"type": "document", "source": {"type": "text", "data": long()}}])),
        user(json!([{"type": "document", "source": {"data": long(), "type": "text"}}])),
        user(json!([{"type": "document", "title": long(), "source": {"type": "url", "url": "x"}}])),
        user(json!([{"type": "image_url", "image_url": {"url": "x", "detail": long()}}])),
        user(json!([{"type": "image_url", "image_url": {"url": format!("https://{}", long())}}])),
    ] {
        assert!(tokens(&messages, At::Messages) > LONG_BYTES / 4, "{}", messages.to_string().replace('A', ""));
    }
    let schema = json!([{"name": "f", "parameters": {"data": long(), "source": {"data": long()}}}]);
    assert!(tokens(&schema, At::List) > LONG_BYTES / 2);
    for prompt in [json!(long()), json!([long()]), json!({"data": long()})] {
        assert!(tokens(&prompt, At::Prompts) > LONG_BYTES / 4);
    }
}

#[test]
fn pictures_and_sounds_count_by_the_piece_where_the_apis_carry_them() {
    let user = |part: Value| json!([{"role": "user", "content": [part]}]);
    for messages in [
        user(json!({"type": "image_url", "image_url": {"url": long()}})),
        user(json!({"type": "image_url", "image_url": long()})),
        user(json!({"type": "video_url", "video_url": {"url": long()}})),
        user(json!({"type": "input_audio", "input_audio": {"data": long(), "format": "wav"}})),
        user(json!({"type": "file", "file": {"file_data": long()}})),
        user(json!({"type": "image_embeds", "image_embeds": long()})),
        user(json!({"type": "image_embeds", "image_embeds": {"image_embeds": long(), "image_grid_thw": "AAAA"}})),
        user(json!({"type": "audio_embeds", "audio_embeds": [long()]})),
        user(json!({"type": "video_embeds", "video_embeds": {"nested": {"x": long()}}})),
        user(json!({"type": "input_image", "image_url": long()})),
        user(json!({"type": "input_file", "file_data": long()})),
        user(json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": long()}})),
        user(json!({"type": "tool_result", "content": [
            {"type": "image", "source": {"data": long(), "type": "base64"}},
        ]})),
        user(json!({"type": "document", "source": {"type": "content", "content": [
            {"type": "image", "source": {"type": "base64", "data": long()}},
        ]}})),
        json!([{"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": long()}}]),
    ] {
        let counted = tokens(&messages, At::Messages);
        assert!(
            (MEDIA_TOKENS..MEDIA_TOKENS + 40).contains(&counted),
            "{counted}: {}",
            messages.to_string().replace('A', "")
        );
    }
}

#[test]
fn tools_that_the_server_runs_are_told_from_those_of_the_client() {
    let of = |tools: Value| {
        let mut tally = Tally::default();
        Weigh::tools(&mut tally).deserialize(&tools).unwrap();
        tally.has_server_tools()
    };
    for tools in [
        json!([]),
        json!(null),
        json!([{"type": "function", "name": "web_search"}, {"type": "custom"}, {"name": "x"}]),
        json!([{"type": "function", "parameters": {"type": "object"}}]),
    ] {
        assert!(!of(tools.clone()), "{tools}");
    }
    for tools in
        [json!([{"type": "function"}, {"type": "web_search_preview"}]), json!([{"type": "mcp", "server_url": "x"}])]
    {
        assert!(of(tools.clone()), "{tools}");
    }
}
