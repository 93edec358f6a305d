use super::*;
use proptest::prelude::*;

const FIELDS: &[Field] = &[
    ("model", Use::Keep),
    ("messages", Use::Messages),
    ("user", Use::Pass),
    ("kept_skis", Use::Keep),
    ("official", Use::Keep),
    ("metadata", Use::Labels),
];

fn loose(body: &str) -> Result<Fields<'_>, Fault> {
    read(body.as_bytes(), Known::call(FIELDS, false))
}

fn strict(body: &str) -> Result<Fields<'_>, Fault> {
    read(body.as_bytes(), Known::call(FIELDS, true))
}

fn param(read: Result<Fields<'_>, Fault>) -> Option<String> {
    read.err().and_then(|fault| fault.param).map(std::borrow::Cow::into_owned)
}

#[test]
fn a_field_that_only_a_server_obeys_is_refused_unless_it_is_empty() {
    for field in [
        "extra_body",
        "router_settings_override",
        "litellm_metadata",
        "aws_bedrock_runtime_endpoint",
        "mock_response",
        "fallbacks",
        "tags",
        "kv_transfer_params",
        "lora_path",
        "bootstrap_host",
        "lora",
        "id_slot",
        "provider",
        "no-log",
    ] {
        for value in ["0", "false", r#""x""#, "[0]", r#"{"model":"secret"}"#, "[[]]", "{\"\":null}"] {
            let body = format!(r#"{{"model":"m","{field}":{value}}}"#);
            let found = param(loose(&body)).unwrap();
            assert!(servers::is_named(&found, field), "{body}: {found}");
        }
        for empty in ["null", "[]", "{}", "\"\"", "[ ]", "{\n}"] {
            assert!(loose(&format!(r#"{{"model":"m","{field}":{empty}}}"#)).is_ok(), "{field}: {empty}");
        }
        let upper = format!(r#"{{"model":"m","{}":null}}"#, field.to_ascii_uppercase());
        assert!(loose(&upper).is_err(), "{upper}");
        let escaped = format!(r#"{{"model":"m","\u{:04x}{}":1}}"#, field.as_bytes()[0], field.get(1..).unwrap());
        assert!(loose(&escaped).is_err(), "{escaped}");
    }
}

#[test]
fn labels_are_the_callers_own_but_for_those_that_a_server_obeys() {
    for labels in ["null", "{}", r#"{"user_id":"u","team":"x","nested":{"tags":["a"]}}"#] {
        assert!(loose(&format!(r#"{{"metadata":{labels}}}"#)).is_ok(), "{labels}");
    }
    for labels in [
        r#"{"tags":["paid"]}"#,
        r#"{"Tags":["paid"]}"#,
        r#"{"\u0074ags":["paid"]}"#,
        r#"{"spend_logs_metadata":{"team":"x"}}"#,
        r#"{"user_api_key_team_id":"x"}"#,
        r#""{\"tags\":[\"paid\"]}""#,
        "[1]",
        "7",
    ] {
        assert_eq!(param(loose(&format!(r#"{{"metadata":{labels}}}"#))).as_deref(), Some("metadata"), "{labels}");
    }
}

#[test]
fn a_strict_reader_takes_the_fields_of_its_api_and_says_which_one_it_does_not_know() {
    assert!(strict(r#"{"model":"m","user":"u","messages":[],"metadata":{"team":"x"}}"#).is_ok());
    for field in ["top_k", "extra_body", "User", "\u{212a}", ""] {
        let body = format!(r#"{{"model":"m","{field}":null}}"#);
        assert_eq!(param(strict(&body)).as_deref(), Some(field));
    }
    let long = "x".repeat(100_000);
    assert_eq!(param(strict(&format!(r#"{{"{long}":1}}"#))).unwrap().len(), 64);
}

#[test]
fn every_field_is_as_shallow_as_every_other_one() {
    for field in ["model", "messages", "user", "metadata", "extra_body", "unknown"] {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let nested = |depth: usize| format!(r#"{{"{field}":{}0{}}}"#, open.repeat(depth), close.repeat(depth));
            assert!(loose(&nested(1_000)).is_err(), "{field}");
            assert!(loose(&nested(100_000)).is_err(), "{field}");
            if !["metadata", "extra_body"].contains(&field) {
                assert!(loose(&nested(100)).is_ok(), "{field}");
            }
        }
    }
}

/// What Python's `lower`, `upper` and `casefold`, as the full foldings of Unicode 14, make of code points beyond ASCII:
/// these and no others become ASCII letters.
const FOLDS: &[(char, &str)] = &[
    ('\u{df}', "ss"),
    ('\u{131}', "i"),
    ('\u{17f}', "s"),
    ('\u{1e9e}', "ss"),
    ('\u{212a}', "k"),
    ('\u{fb00}', "ff"),
    ('\u{fb01}', "fi"),
    ('\u{fb02}', "fl"),
    ('\u{fb03}', "ffi"),
    ('\u{fb04}', "ffl"),
    ('\u{fb05}', "st"),
    ('\u{fb06}', "st"),
];

#[test]
fn every_code_point_of_unicode_that_folds_into_ascii_is_known() {
    let folds = |letter: &char| folded(&letter.to_string()).filter(|folded| folded.is_ascii()).is_some();
    let found: Vec<char> = ('\u{80}'..=char::MAX).filter(folds).collect();
    assert_eq!(found, FOLDS.iter().map(|(letter, _)| *letter).collect::<Vec<_>>());
    for letter in '\u{80}'..=char::MAX {
        let maps: [String; 2] = [letter.to_lowercase().collect(), letter.to_uppercase().collect()];
        assert!(folds(&letter) || !maps.iter().any(|map| map.is_ascii()), "{letter:?}");
    }
}

#[test]
fn a_name_that_folds_to_one_that_matters_is_refused_by_that_name() {
    for (known, spelled) in [
        ("kept_skis", "\u{212a}ept_skis"),
        ("kept_skis", "kept_\u{17f}kis"),
        ("kept_skis", "KEPT_S\u{212a}\u{131}S"),
        ("messages", "me\u{df}ages"),
        ("messages", "ME\u{1e9e}AGES"),
        ("official", "o\u{fb03}cial"),
        ("extra_body", "EXTRA_body"),
        ("provider", "prov\u{131}der"),
        ("aws_*", "aw\u{17f}_region_name"),
    ] {
        assert_eq!(param(loose(&format!(r#"{{"model":"m","{spelled}":1}}"#))).as_deref(), Some(known), "{spelled}");
    }
    assert!(
        loose("{\"model\":\"m\",\"stra\u{df}e\":1,\"U\u{17f}er\":2}").is_ok(),
        "only names that matter have one spelling"
    );
}

proptest! {
    #[test]
    fn any_respelling_of_a_known_name_is_refused(
        which in prop::sample::select(&["model", "messages", "kept_skis", "official", "extra_body", "router_settings_override"]),
        picks: Vec<usize>,
    ) {
        let mut spelled = String::new();
        let mut rest = which;
        let mut picks = picks.into_iter();
        while let Some(first) = rest.chars().next() {
            let fitting: Vec<_> = FOLDS.iter().filter(|(_, ascii)| rest.starts_with(ascii)).collect();
            let pick = picks.next().unwrap_or(0) % (fitting.len() + 2);
            if let Some((letter, ascii)) = fitting.get(pick) {
                spelled.push(*letter);
                rest = rest.get(ascii.len()..).unwrap();
            } else {
                spelled.push(if pick == fitting.len() { first } else { first.to_ascii_uppercase() });
                rest = rest.get(1..).unwrap();
            }
        }
        let read = param(loose(&format!(r#"{{"{spelled}":1}}"#)));
        if spelled == which && FIELDS.iter().any(|(name, _)| *name == which) {
            prop_assert_eq!(read, None);
        } else {
            prop_assert_eq!(read.as_deref(), Some(which));
        }
    }
}
