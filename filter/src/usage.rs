//! Metering: reads the usage out of a reply as it passes, and never holds the reply back for it.
//!
//! Where a reply reports no usage, or none to be believed, its output is estimated:
//!
//! | reply | estimate |
//! |---|---|
//! | stream of events | one token for each piece of text; one for every 4 bytes where pieces are too long for that |
//! | JSON | one for every 4 bytes of text in it: content, reasoning, arguments |
//! | compressed against our wish | one for every byte |
//! | anything else | one for every 4 bytes |

mod events;
mod json;
mod report;
mod reports;
mod sse;
mod work;
mod written;

pub(crate) use report::Counts;
use sluice_policy::units::Tokens;

/// How the replies of a dialect tell what was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Not at all: each request has a fixed charge.
    Fixed,
    /// `usage` with `prompt_tokens` and `completion_tokens`.
    OpenAi,
    /// The same without output.
    Embeddings,
    /// `usage` with `input_tokens` and `output_tokens`, in streams inside of `response`.
    Responses,
    /// The same with the cache beside the input; in streams spread over two kinds of events.
    Anthropic,
    /// Text without any usage.
    Text,
}

/// How many sequences a reply bears, as far as the request told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sequences {
    all: u32,
    per_prompt: u32,
}

impl Sequences {
    pub(crate) const ONE: Self = Self { all: 1, per_prompt: 1 };

    /// `all` that these prompts yield together.
    pub(crate) fn of(prompts: u32, all: u32) -> Self {
        Self { all: all.max(1), per_prompt: (all / prompts.max(1)).max(1) }
    }

    /// Servers that report by the choice number as many of each prompt as `n` says: the other fields, for which room is
    /// kept as well, mean nothing to them, or sequences that are never sent. Too large a number here would take several
    /// prompts for one.
    pub(crate) fn numbered(self, n: u32) -> Self {
        let is_list = self.per_prompt < self.all;
        if is_list { Self { per_prompt: n.clamp(1, self.per_prompt), ..self } } else { self }
    }

    fn are_several(self) -> bool {
        self.all > 1
    }

    /// Whether a choice's index tells it from others.
    fn has(self, index: u32) -> bool {
        self.are_several() && index < self.all
    }

    /// The prompt that a choice answers: the choices of each stand together.
    fn prompt_of(self, index: u32) -> u32 {
        index / self.per_prompt
    }
}

/// The reader of one reply.
#[derive(Debug)]
pub(crate) enum Meter {
    /// Nothing is read.
    Fixed,
    Json(json::JsonMeter),
    Sse(Box<sse::SseMeter>),
    /// A reply that cannot be read (compressed against our wish, or of another kind): only its length is known.
    Opaque {
        bytes: u64,
        is_compressed: bool,
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
    /// Our count of the output that has come since it gave them, or of all output when it gave none.
    pub(crate) counted: Tokens,
}

impl Meter {
    /// The meter for a reply with these headers. `drop_usage`: we asked for a usage event that the client did not
    /// ask for, so it is taken out again. `sequences`: as many as were asked for.
    pub(crate) fn for_reply(
        shape: Shape,
        content_type: Option<&str>,
        content_encoding: Option<&str>,
        drop_usage: bool,
        sequences: Sequences,
    ) -> Self {
        if shape == Shape::Fixed {
            return Meter::Fixed;
        }
        let is_plain = content_encoding.is_none_or(|encoding| encoding.eq_ignore_ascii_case("identity"));
        let media = content_type.and_then(|text| text.split(';').next()).map(str::trim);
        match media.map(str::to_ascii_lowercase).as_deref() {
            Some("text/event-stream") if is_plain => {
                Meter::Sse(Box::new(sse::SseMeter::new(shape, drop_usage, sequences)))
            }
            Some(kind) if is_plain && (kind == "application/json" || kind.ends_with("+json")) => {
                Meter::Json(json::JsonMeter::new(shape, sequences))
            }
            _ => Meter::Opaque { bytes: 0, is_compressed: !is_plain },
        }
    }

    /// Whether bytes of the reply may be taken out, so that its length is not known in advance.
    pub(crate) fn may_shorten(&self) -> bool {
        matches!(self, Meter::Sse(sse) if sse.drops_usage())
    }

    pub(crate) fn is_stream(&self) -> bool {
        matches!(self, Meter::Sse(_))
    }

    /// Whether what it reports of several prompts is of the first one alone, as in llama.cpp's documents.
    pub(crate) fn reports_first_alone(&self) -> bool {
        matches!(self, Meter::Json(json) if json.is_of_llama_cpp())
    }

    /// Whether anything that the model wrote has come.
    pub(crate) fn has_output(&self) -> bool {
        match self {
            Meter::Sse(sse) => sse.has_output(),
            Meter::Fixed | Meter::Json(_) | Meter::Opaque { .. } => true,
        }
    }

    /// Whether everything has come that its client waits for. Whatever ends the reply now does not break it off.
    pub(crate) fn is_whole(&self) -> bool {
        match self {
            Meter::Sse(sse) => sse.is_whole(),
            Meter::Fixed | Meter::Json(_) | Meter::Opaque { .. } => false,
        }
    }

    /// Reads the next piece, cut wherever the network cut it.
    pub(crate) fn read(&mut self, piece: &[u8]) -> Passage {
        match self {
            Meter::Fixed => {}
            Meter::Json(json) => json.read(piece),
            Meter::Sse(sse) => return sse.read(piece),
            Meter::Opaque { bytes, .. } => *bytes = bytes.saturating_add(piece.len() as u64),
        }
        Passage::Unchanged
    }

    /// Ends the reply; returns bytes that were held and must still go on.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        match self {
            Meter::Sse(sse) => sse.finish(),
            Meter::Fixed | Meter::Json(_) | Meter::Opaque { .. } => Vec::new(),
        }
    }

    pub(crate) fn reading(&self) -> Reading {
        match self {
            Meter::Fixed => Reading::default(),
            Meter::Json(json) => json.reading(),
            Meter::Sse(sse) => sse.reading(),
            Meter::Opaque { bytes, is_compressed: false } => Reading { reported: None, counted: tokens_of(*bytes) },
            // Text shrinks to about a quarter.
            Meter::Opaque { bytes, is_compressed: true } => Reading { reported: None, counted: Tokens(*bytes) },
        }
    }
}

/// The estimate for output whose tokens nobody counted: one for every 4 bytes, rounded up.
fn tokens_of(bytes: u64) -> Tokens {
    const BYTES_PER_TOKEN: u64 = 4;
    Tokens(bytes.div_ceil(BYTES_PER_TOKEN))
}

#[cfg(test)]
pub(crate) mod streams;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reply_s_own_headers_choose_the_meter() {
        let meter = |kind, encoding| Meter::for_reply(Shape::OpenAi, kind, encoding, true, Sequences::ONE);
        assert!(matches!(meter(Some("Text/Event-Stream; charset=utf-8"), None), Meter::Sse(_)));
        assert!(matches!(meter(Some("application/json"), Some("identity")), Meter::Json(_)));
        assert!(matches!(meter(Some("application/problem+json"), None), Meter::Json(_)));
        assert!(matches!(meter(Some("application/json"), Some("gzip")), Meter::Opaque { is_compressed: true, .. }));
        assert!(matches!(meter(Some("text/html"), None), Meter::Opaque { is_compressed: false, .. }));
        assert!(matches!(meter(None, None), Meter::Opaque { .. }));
        let fixed = Meter::for_reply(Shape::Fixed, Some("application/json"), None, false, Sequences::ONE);
        assert!(matches!(fixed, Meter::Fixed));
    }

    #[test]
    fn an_unreadable_reply_is_estimated_by_its_length() {
        let mut meter = Meter::for_reply(Shape::OpenAi, None, None, false, Sequences::ONE);
        assert_eq!(meter.read(b"12345"), Passage::Unchanged);
        assert_eq!(meter.reading(), Reading { reported: None, counted: Tokens(2) });
        let mut meter = Meter::for_reply(Shape::OpenAi, None, Some("br"), false, Sequences::ONE);
        assert_eq!(meter.read(b"12345"), Passage::Unchanged);
        assert_eq!(meter.reading(), Reading { reported: None, counted: Tokens(5) });
    }
}
