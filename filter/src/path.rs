//! Paths: compared byte for byte with the routes, so anything that another server might read as a different path
//! is refused first.

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
    let lower = path.to_ascii_lowercase();
    if ["%2f", "%5c"].iter().any(|escape| lower.contains(escape)) {
        return Err("holds an escaped slash");
    }
    if lower.contains("%00") {
        return Err("holds an escaped zero byte");
    }
    let dotted = lower.replace("%2e", ".");
    let mut segments = dotted.split('/').skip(1).peekable();
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
            "/v1/chat#x",
            "/v1/chat?x#/../admin",
            "/v1/ch at",
            "/v1/ch\u{e9}t",
        ] {
            assert!(normal(path).is_err(), "{path}");
        }
    }
}
