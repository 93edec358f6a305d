use super::*;
use crate::headers::headers_of;
use proptest::prelude::*;

const HEADERS: [&str; 3] = ["authorization", "x-api-key", "api-key"];

fn reason(pairs: &[(&str, &str)]) -> Option<Reason> {
    let names: Vec<String> = HEADERS.iter().map(ToString::to_string).collect();
    identify(&headers_of(pairs), &names).err().map(|(reason, _)| reason)
}

fn own_key(id: &str, secret: &str) -> String {
    let signed = format!("slk_{id}_{secret}");
    let checksum: String = hex(&Sha256::digest(signed.as_bytes())).chars().take(8).collect();
    format!("{signed}_{checksum}")
}

fn good_key() -> String {
    own_key("a1b2c3d4e5f6", "00112233445566778899aabbccddeeff")
}

#[test]
fn a_key_of_our_own_is_known_by_its_id_and_digest() {
    let key = caller_key(&good_key());
    assert_eq!(key.proof().id.as_deref(), Some("a1b2c3d4e5f6"));
    assert_eq!(key.proof().digest, hex(&Sha256::digest(good_key().as_bytes())));
}

#[test]
fn a_foreign_key_goes_without_an_id() {
    let key = caller_key("sk-anything.goes/here+=~");
    assert_eq!(key.proof().id, None);
    assert_eq!(key.proof().digest.len(), 64);
}

#[test]
fn every_header_that_may_carry_a_key_is_read() {
    for (name, value) in [
        ("authorization", "Bearer sk-1"),
        ("authorization", "bEaReR   sk-1 "),
        ("x-api-key", "sk-1"),
        ("X_Api_Key", "sk-1"),
        ("api-key", "sk-1"),
    ] {
        assert_eq!(reason(&[(name, value)]), None, "{name}: {value}");
    }
}

#[test]
fn the_same_key_in_two_headers_is_one_key() {
    assert_eq!(reason(&[("authorization", "Bearer sk-1"), ("x-api-key", "sk-1")]), None);
}

#[test]
fn no_key_is_missing() {
    assert_eq!(reason(&[("cookie", "a=b")]), Some(Reason::MissingKey));
}

#[test]
fn two_keys_conflict_and_so_does_one_header_twice() {
    for pairs in [
        [("authorization", "Bearer sk-1"), ("x-api-key", "sk-2")],
        [("x-api-key", "sk-1"), ("x-api-key", "sk-1")],
        [("x-api-key", "sk-1"), ("x_api_key", "sk-1")],
        [("authorization", "Bearer sk-1,Bearer sk-2"), ("a", "b")],
    ] {
        assert_eq!(reason(&pairs), Some(Reason::ConflictingKeys), "{pairs:?}");
    }
}

#[test]
fn what_is_no_key_is_malformed() {
    let long = "k".repeat(KEY_BYTES_MAX + 1);
    let damaged = good_key().replacen('a', "b", 1);
    let upper = good_key().to_uppercase().replacen("SLK", "slk", 1);
    for (name, value) in [
        ("authorization", "Basic dXNlcjpwYXNz"),
        ("authorization", "sk-1"),
        ("authorization", "Bearer"),
        ("authorization", "Bearer "),
        ("x-api-key", ""),
        ("x-api-key", "two words"),
        ("x-api-key", "schl\u{fc}ssel"),
        ("x-api-key", "slk_"),
        ("x-api-key", "slk_a1b2c3d4e5f6_x_y"),
        ("x-api-key", long.as_str()),
        ("x-api-key", damaged.as_str()),
        ("x-api-key", upper.as_str()),
    ] {
        assert_eq!(reason(&[(name, value)]), Some(Reason::MalformedKey), "{name}: {value}");
    }
}

#[test]
fn a_key_never_shows_in_debug_output() {
    let key = caller_key(&good_key());
    assert_eq!(format!("{key:?} {:?}", key.digest()), "[redacted] [redacted]");
}

proptest! {
    #[test]
    fn any_bytes_in_any_key_header_are_read_without_a_panic(
        values in proptest::collection::vec((0..HEADERS.len(), any::<Vec<u8>>()), 0..4),
    ) {
        let pairs = values
            .into_iter()
            .map(|(index, value)| (HEADERS.get(index).copied().unwrap_or("").to_owned(), value))
            .collect();
        let names: Vec<String> = HEADERS.iter().map(ToString::to_string).collect();
        let _ = identify(&Headers::new(pairs), &names);
    }

    #[test]
    fn one_changed_character_of_our_own_key_is_noticed(at in 4usize..60, other in "[0-9a-f]") {
        let key = good_key();
        let changed: String = key
            .chars()
            .enumerate()
            .map(|(index, letter)| if index == at { other.chars().next().unwrap_or(letter) } else { letter })
            .collect();
        prop_assume!(changed != key);
        prop_assert!(own_key_id(&changed).is_none());
    }
}
