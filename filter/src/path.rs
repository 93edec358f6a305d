//! Paths: compared byte for byte with the routes, so anything that another server might read as a different path
//! is refused first; and of the query only what is known to be harmless goes on.

use std::borrow::Cow;

/// Versions and switches are shorter.
const VALUE_BYTES_MAX: usize = 256;

/// Cuts the query off and checks that the path has one reading only.
///
/// # Errors
/// What is wrong with it, as the end of a sentence.
pub(crate) fn normal(path_and_query: &str) -> Result<&str, &'static str> {
    // A fragment never leaves a browser; servers disagree on whether it belongs to the path.
    if path_and_query.contains('#') {
        return Err("holds a fragment");
    }
    let path = path_and_query.split('?').next().unwrap_or_default();
    if !path.starts_with('/') {
        return Err("does not begin with a slash");
    }
    if path.contains('\\') {
        return Err("holds a backslash");
    }
    if path.bytes().any(|byte| !byte.is_ascii_graphic()) {
        return Err("holds a byte that must be percent-encoded");
    }
    let unescaped = if path.contains('%') { Cow::Owned(without_escapes(path)?) } else { Cow::Borrowed(path) };
    let mut segments = unescaped.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        match segment {
            "" if segments.peek().is_some() => return Err("holds an empty segment"),
            "." | ".." => return Err("holds a dot segment"),
            // Some servers cut path parameters (`..;x`) off before they resolve dots.
            other if other.starts_with(".;") || other.starts_with("..;") => {
                return Err("holds a dot segment");
            }
            _ => {}
        }
    }
    Ok(path)
}

/// The path without its query and with its escaped slashes as slashes; `None`: it has none, or another reading as well.
pub(crate) fn with_plain_slashes(path_and_query: &str) -> Option<String> {
    let path = path_and_query.split('?').next().unwrap_or_default();
    let plain = path.replace("%2F", "/").replace("%2f", "/");
    (plain != path && normal(&plain).is_ok() && !path_and_query.contains('#')).then_some(plain)
}

/// A segment as it reads unescaped, once; `None`: it is no text, or an escape is none.
pub(crate) fn unescaped(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut pieces = segment.split('%');
    bytes.extend_from_slice(pieces.next().unwrap_or_default().as_bytes());
    for piece in pieces {
        let (digits, rest) = piece.split_at_checked(2)?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

/// The path with its escaped dots as dots, in lower case.
fn without_escapes(path: &str) -> Result<String, &'static str> {
    let lower = once_escaped(&path.to_ascii_lowercase());
    if ["%2f", "%5c"].iter().any(|escape| lower.contains(escape)) {
        return Err("holds an escaped slash");
    }
    if lower.contains("%00") {
        return Err("holds an escaped zero byte");
    }
    Ok(lower.replace("%2e", "."))
}

/// The path as it reads when percent signs that were escaped themselves, however often, no longer are: behind Envoy a
/// server may unescape twice.
fn once_escaped(path: &str) -> String {
    let mut pieces = path.split('%');
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        plain.push('%');
        plain.push_str(piece.trim_start_matches("25"));
    }
    plain
}

/// The path with those parameters of its query only that are named like this, byte for byte, and have a short and plain
/// value. Servers split parameters at `;` too, and some read more from them than from the body.
pub(crate) fn with_query_of(path_and_query: &str, is_allowed: impl Fn(&str) -> bool) -> String {
    let Some((path, query)) = path_and_query.split_once('?') else { return path_and_query.to_owned() };
    let passes = |parameter: &&str| {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        is_allowed(name) && value.len() <= VALUE_BYTES_MAX && !value.contains(';')
    };
    let kept: Vec<&str> = query.split('&').filter(passes).collect();
    if kept.is_empty() { path.to_owned() } else { format!("{path}?{}", kept.join("&")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_is_cut_off() {
        assert_eq!(normal("/v1/chat/completions?api-version=1/../2"), Ok("/v1/chat/completions"));
        assert_eq!(normal("/"), Ok("/"));
        assert_eq!(normal("/v1/"), Ok("/v1/"));
    }

    #[test]
    fn every_second_reading_of_a_path_is_refused() {
        for path in [
            "",
            "v1",
            "*",
            "http://host/v1",
            "/v1//chat",
            "//v1/chat",
            "/v1/./chat",
            "/v1/../admin",
            "/v1/..",
            "/v1/.",
            "/v1/%2e%2E/admin",
            "/v1/.%2e/admin",
            "/v1/%2fchat",
            "/v1%5Cchat",
            "/v1\\chat",
            "/v1/..;x/admin",
            "/v1/chat%00",
            "/v1/..%252f..",
            "/v1/x%25252F..%255cy",
            "/v1/%252e%252E/admin",
            "/v1/chat%2500",
            "/v1/chat#x",
            "/v1/chat?x#/../admin",
            "/v1/ch at",
            "/v1/ch\u{e9}t",
        ] {
            assert!(normal(path).is_err(), "{path}");
        }
    }

    #[test]
    fn an_escaped_percent_sign_is_no_fault_by_itself_and_costs_no_more_than_its_length() {
        assert_eq!(normal("/v1/100%25"), Ok("/v1/100%25"));
        let long = format!("/v1/%{}2f", "25".repeat(30_000));
        assert!(normal(&long).is_err());
    }

    #[test]
    fn escaped_slashes_are_slashes_where_that_leaves_one_reading() {
        assert_eq!(with_plain_slashes("/v1/models/a%2Fb%2fc?x"), Some("/v1/models/a/b/c".to_owned()));
        for path in [
            "/v1/models/a/b",
            "/v1/models/a%252Fb",
            "/v1/models/..%2Fb",
            "/v1/%2F/b",
            "/v1/a%2F%2Fb",
            "/v1/a%2Fb#c",
            "/a%2Fb%5Cc",
        ] {
            assert_eq!(with_plain_slashes(path), None, "{path}");
        }
    }

    #[test]
    fn a_segment_is_unescaped_once() {
        for (segment, plain) in
            [("a", Some("a")), ("a%3Ab%20", Some("a:b ")), ("%2541", Some("%41")), ("%E2%82%AC", Some("€"))]
        {
            assert_eq!(unescaped(segment).as_deref(), plain, "{segment}");
        }
        for segment in ["%", "%4", "%zz", "%+1", "%ff", "%€"] {
            assert_eq!(unescaped(segment), None, "{segment}");
        }
    }

    #[test]
    fn of_a_query_only_what_is_named_goes_on() {
        let allowed = |name: &str| ["api-version", "beta"].contains(&name);
        let long = format!("/v1?beta={}", "x".repeat(257));
        for (given, kept) in [
            ("/v1", "/v1"),
            ("/v1?", "/v1"),
            ("/v1?model=secret", "/v1"),
            ("/v1?api-version=2024-10-21&model=secret&beta", "/v1?api-version=2024-10-21&beta"),
            ("/v1?api-version=1?model=secret", "/v1?api-version=1?model=secret"),
            ("/v1?model=secret;beta=true", "/v1"),
            ("/v1?beta=true;model=secret", "/v1"),
            ("/v1?BETA=true&b%65ta=true&+beta=true&beta[]=true&=beta", "/v1"),
            (&long, "/v1"),
        ] {
            assert_eq!(with_query_of(given, allowed), kept, "{given}");
        }
    }
}
