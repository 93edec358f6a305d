//! What kind of reply comes: its label says it, and its first bytes know better.
//!
//! Gateways drop or change the content type of streams, and servers answer a stream with a document. Both are told from
//! what they begin with, so a label decides only where the first bytes could be anything.

/// How a line of a stream of events may begin.
const FIELDS: [&[u8]; 5] = [b"data:", b"event:", b"id:", b"retry:", b":"];
/// How a page begins, in lower case.
const PAGES: [&[u8]; 2] = [b"<!doctype html", b"<html"];
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Further than this is not looked.
const LOOK_BYTES: usize = 64;

/// What a reply is read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Events,
    Json,
    /// HTML, which no model server writes: a login form, or a proxy's error.
    Page,
    Other,
}

impl Kind {
    /// By its content type.
    pub(super) fn labelled(content_type: Option<&str>) -> Self {
        let media = content_type.and_then(|text| text.split(';').next()).map(str::trim).unwrap_or_default();
        if media.eq_ignore_ascii_case("text/event-stream") {
            Kind::Events
        } else if is_json(media) {
            Kind::Json
        } else if media.eq_ignore_ascii_case("text/html") || media.eq_ignore_ascii_case("application/xhtml+xml") {
            Kind::Page
        } else {
            Kind::Other
        }
    }

    /// By its first bytes, where those tell. `None`: more of them must come.
    pub(super) fn beginning_with(bytes: &[u8], label: Kind) -> Option<Self> {
        let looked_at = bytes.get(..LOOK_BYTES.min(bytes.len())).unwrap_or_default();
        let undecided = if bytes.len() >= LOOK_BYTES { Some(label) } else { None };
        let text = looked_at.strip_prefix(BYTE_ORDER_MARK).unwrap_or(looked_at).trim_ascii_start();
        match text.first() {
            None => undecided,
            Some(b'{') => Some(Kind::Json),
            Some(b'[') if label != Kind::Events => Some(Kind::Json),
            Some(b'<') if label == Kind::Page => Some(Kind::Page),
            Some(_) if begins_like(text, &FIELDS) == Some(true) => Some(Kind::Events),
            Some(_) if begins_like(text, &PAGES) == Some(true) => Some(Kind::Page),
            Some(_) if begins_like(text, &FIELDS).is_none() || begins_like(text, &PAGES).is_none() => undecided,
            Some(_) => Some(label),
        }
    }
}

fn is_json(media: &str) -> bool {
    const SUFFIX: &str = "+json";
    let suffix = media.len().checked_sub(SUFFIX.len()).and_then(|at| media.get(at..)).unwrap_or_default();
    media.eq_ignore_ascii_case("application/json") || suffix.eq_ignore_ascii_case(SUFFIX)
}

/// Whether a text begins with one of these, in any case; `None`: it is too short to know.
fn begins_like(text: &[u8], beginnings: &[&[u8]]) -> Option<bool> {
    let mut may_become = false;
    for beginning in beginnings {
        let compared = text.len().min(beginning.len());
        let same = text.iter().zip(*beginning).all(|(byte, wanted)| byte.to_ascii_lowercase() == *wanted);
        if same && compared == beginning.len() {
            return Some(true);
        }
        may_become |= same;
    }
    if may_become { None } else { Some(false) }
}

/// Whether a `content-encoding` packs the reply. Servers also write `none`, a charset or nothing there, which pack nothing.
pub(super) fn is_packed(content_encoding: Option<&str>) -> bool {
    const PACKED: [&str; 12] = [
        "gzip",
        "x-gzip",
        "deflate",
        "br",
        "zstd",
        "compress",
        "x-compress",
        "dcb",
        "dcz",
        "exi",
        "aes128gcm",
        "pack200-gzip",
    ];
    let codings = content_encoding.unwrap_or_default().split(',').map(str::trim);
    codings.into_iter().any(|coding| PACKED.iter().any(|packed| coding.eq_ignore_ascii_case(packed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABELS: [Kind; 4] = [Kind::Events, Kind::Json, Kind::Page, Kind::Other];

    #[test]
    fn the_first_bytes_tell_a_stream_from_a_document_and_a_page_under_any_label() {
        for label in LABELS {
            for (bytes, kind) in [
                ("data: {}", Kind::Events),
                ("event: x", Kind::Events),
                (": ping", Kind::Events),
                ("\r\n\nid:1", Kind::Events),
                ("\u{feff}retry:5", Kind::Events),
                ("{", Kind::Json),
                (" \n{\"data:\":1}", Kind::Json),
                ("<!DOCTYPE html>", Kind::Page),
                ("<HTML lang", Kind::Page),
                ("hello", label),
                ("datum", label),
                ("<think>", if label == Kind::Page { Kind::Page } else { label }),
            ] {
                assert_eq!(Kind::beginning_with(bytes.as_bytes(), label), Some(kind), "{bytes} under {label:?}");
            }
        }
        assert_eq!(Kind::beginning_with(b"[1]", Kind::Other), Some(Kind::Json));
    }

    #[test]
    fn what_the_first_bytes_tell_does_not_depend_on_where_they_are_cut() {
        let spaces = " ".repeat(100);
        for text in ["data: x", "event:", "  {", "<html>", "<!doctype html>", "dat", "retry", "x", "", "<ht", &spaces] {
            let text = format!("{text}{{");
            for label in LABELS {
                let whole = Kind::beginning_with(text.as_bytes(), label);
                for at in 0..text.len() {
                    let cut = text.as_bytes().get(..at).and_then(|head| Kind::beginning_with(head, label));
                    assert!(cut.is_none() || cut == whole, "{text} cut at {at} under {label:?}");
                }
            }
        }
    }

    #[test]
    fn only_what_packs_a_reply_is_an_encoding() {
        for plain in ["", "none", "utf-8", "identity", "chunked", "8bit"] {
            assert!(!is_packed(Some(plain)), "{plain}");
        }
        for packed in ["gzip", "GZIP", "br", "identity, br", "zstd,none"] {
            assert!(is_packed(Some(packed)), "{packed}");
        }
        assert!(!is_packed(None));
    }

    #[test]
    fn a_label_is_a_media_type_in_any_case() {
        for (label, kind) in [
            ("Text/Event-Stream; charset=utf-8", Kind::Events),
            ("application/JSON", Kind::Json),
            ("application/problem+json", Kind::Json),
            ("text/html", Kind::Page),
            ("text/plain", Kind::Other),
            ("", Kind::Other),
        ] {
            assert_eq!(Kind::labelled(Some(label)), kind, "{label}");
        }
        assert_eq!(Kind::labelled(None), Kind::Other);
    }
}
