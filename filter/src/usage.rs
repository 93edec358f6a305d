//! Metering: reads the usage out of a reply as it passes, and never holds the reply back for it.

mod json;
mod report;
mod sse;

pub(crate) use report::Counts;
use sluice_policy::units::Tokens;

/// The reader of one reply.
#[derive(Debug)]
pub(crate) enum Meter {
    Json(json::JsonMeter),
    Sse(sse::SseMeter),
    /// A reply that cannot be read (compressed against our wish, or of another kind): only its length is known.
    Opaque {
        bytes: u64,
    },
}

/// What becomes of a piece of the reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Passage {
    /// It goes on as it is.
    Unchanged,
    /// These bytes go on instead; the rest of it is held until the event is complete, or was dropped.
    Replaced(Vec<u8>),
}

/// What a reply told about the tokens it cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    /// The upstream's own numbers, if it gave any that can be believed.
    pub(crate) reported: Option<Counts>,
    /// Our count of the output.
    pub(crate) counted: Tokens,
}

impl Meter {
    /// The meter for a reply with these headers. `drop_usage`: we asked for a usage event that the client did not
    /// ask for, so it is taken out again.
    pub(crate) fn for_reply(content_type: Option<&str>, content_encoding: Option<&str>, drop_usage: bool) -> Self {
        let is_plain = content_encoding.is_none_or(|encoding| encoding.eq_ignore_ascii_case("identity"));
        let media = content_type.and_then(|text| text.split(';').next()).map(str::trim);
        match media.map(str::to_ascii_lowercase).as_deref() {
            Some("text/event-stream") if is_plain => Meter::Sse(sse::SseMeter::new(drop_usage)),
            Some(kind) if is_plain && (kind == "application/json" || kind.ends_with("+json")) => {
                Meter::Json(json::JsonMeter::default())
            }
            _ => Meter::Opaque { bytes: 0 },
        }
    }

    /// Whether bytes of the reply may be taken out, so that its length is not known in advance.
    pub(crate) fn may_shorten(&self) -> bool {
        matches!(self, Meter::Sse(sse) if sse.drops_usage())
    }

    /// Reads the next piece, cut wherever the network cut it.
    pub(crate) fn read(&mut self, piece: &[u8]) -> Passage {
        match self {
            Meter::Json(json) => json.read(piece),
            Meter::Sse(sse) => return sse.read(piece),
            Meter::Opaque { bytes } => *bytes = bytes.saturating_add(piece.len() as u64),
        }
        Passage::Unchanged
    }

    /// Ends the reply; returns bytes that were held and must still go on.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        match self {
            Meter::Sse(sse) => sse.finish(),
            Meter::Json(_) | Meter::Opaque { .. } => Vec::new(),
        }
    }

    pub(crate) fn reading(&self) -> Reading {
        match self {
            Meter::Json(json) => json.reading(),
            Meter::Sse(sse) => sse.reading(),
            Meter::Opaque { bytes } => Reading { reported: None, counted: tokens_of(*bytes) },
        }
    }
}

/// The estimate for output whose tokens nobody counted: one for every 4 bytes, rounded up.
fn tokens_of(bytes: u64) -> Tokens {
    const BYTES_PER_TOKEN: u64 = 4;
    Tokens(bytes.div_ceil(BYTES_PER_TOKEN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reply_s_own_headers_choose_the_meter() {
        let meter = |kind, encoding| Meter::for_reply(kind, encoding, true);
        assert!(matches!(meter(Some("Text/Event-Stream; charset=utf-8"), None), Meter::Sse(_)));
        assert!(matches!(meter(Some("application/json"), Some("identity")), Meter::Json(_)));
        assert!(matches!(meter(Some("application/problem+json"), None), Meter::Json(_)));
        assert!(matches!(meter(Some("application/json"), Some("gzip")), Meter::Opaque { .. }));
        assert!(matches!(meter(Some("text/html"), None), Meter::Opaque { .. }));
        assert!(matches!(meter(None, None), Meter::Opaque { .. }));
    }

    #[test]
    fn an_unreadable_reply_is_estimated_by_its_length() {
        let mut meter = Meter::for_reply(None, None, false);
        assert_eq!(meter.read(b"12345"), Passage::Unchanged);
        assert_eq!(meter.reading(), Reading { reported: None, counted: Tokens(2) });
    }
}
