//! Metering: reads the usage out of a reply as it passes, and never holds the reply back for it.
//!
//! Where a reply reports no usage, or none to be believed, its output is estimated:
//!
//! | reply | estimate |
//! |---|---|
//! | stream of events | one token for each piece of text; one for every 4 bytes where pieces are too long for that |
//! | JSON | one for every 4 bytes of text in it: content, reasoning, arguments |
//! | compressed against our wish | one for every byte |
//! | a page | none |
//! | anything else | one for every 4 bytes |
//!
//! Embeddings have no output in any form.

mod events;
mod first_bytes;
mod json;
mod report;
mod reports;
mod sse;
mod work;
mod written;

use first_bytes::{Kind, is_packed};
pub(crate) use report::Counts;
use sluice_policy::units::Tokens;
use written::least_tokens_of;

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
    /// Too little has come to know what it is.
    Undecided(Undecided),
    Json(json::JsonMeter),
    Sse(Box<sse::SseMeter>),
    /// A reply that cannot be read (compressed against our wish, or of another kind): only its length is known.
    Opaque {
        bytes: u64,
        is_compressed: bool,
    },
    /// Embeddings as bytes, which are no output. Some servers report the usage in a header.
    Vectors(json::JsonMeter),
    /// HTML: no model wrote it.
    Page,
}

/// A reply whose first bytes are still to come, or do not tell yet what it is.
#[derive(Clone, Debug)]
pub(crate) struct Undecided {
    shape: Shape,
    label: Kind,
    drop_usage: bool,
    sequences: Sequences,
    /// A few bytes. Where something may be taken out they are held as well, because they may begin the stream.
    begun: Vec<u8>,
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

/// What of a reply's head says how to read it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Head<'a> {
    pub(crate) content_type: Option<&'a str>,
    pub(crate) content_encoding: Option<&'a str>,
    /// Its length is announced, so nothing may be taken out of what is said to be a document.
    pub(crate) has_length: bool,
    /// The header in which vLLM reports the usage of embeddings that come as bytes.
    pub(crate) metadata: Option<&'a str>,
}

impl Meter {
    /// The meter for a reply with this head. `drop_usage`: we asked for a usage event that the client did not ask for, so
    /// it is taken out again. `sequences`: as many as were asked for.
    pub(crate) fn for_reply(shape: Shape, head: Head<'_>, drop_usage: bool, sequences: Sequences) -> Self {
        if shape == Shape::Fixed {
            return Meter::Fixed;
        }
        let label = Kind::labelled(head.content_type);
        let is_compressed = is_packed(head.content_encoding);
        if shape == Shape::Embeddings && (is_compressed || label == Kind::Other) {
            let mut meter = json::JsonMeter::new(shape, sequences);
            meter.read(head.metadata.unwrap_or_default().as_bytes());
            return Meter::Vectors(meter);
        }
        if is_compressed {
            return Meter::Opaque { bytes: 0, is_compressed };
        }
        let drop_usage = drop_usage && !(label == Kind::Json && head.has_length);
        Meter::Undecided(Undecided { shape, label, drop_usage, sequences, begun: Vec::new() })
    }

    /// Whether bytes of the reply may be taken out, so that its length is not known in advance.
    pub(crate) fn may_shorten(&self) -> bool {
        match self {
            Meter::Undecided(undecided) => undecided.drop_usage,
            Meter::Sse(sse) => sse.drops_usage(),
            Meter::Fixed | Meter::Json(_) | Meter::Opaque { .. } | Meter::Vectors(_) | Meter::Page => false,
        }
    }

    pub(crate) fn is_stream(&self) -> bool {
        match self {
            Meter::Sse(_) => true,
            Meter::Undecided(undecided) => undecided.label == Kind::Events,
            Meter::Fixed | Meter::Json(_) | Meter::Opaque { .. } | Meter::Vectors(_) | Meter::Page => false,
        }
    }

    /// Whether what it reports of several prompts is of the first one alone, as in llama.cpp's documents.
    pub(crate) fn reports_first_alone(&self) -> bool {
        matches!(self, Meter::Json(json) if json.is_of_llama_cpp())
    }

    /// Whether anything that the model wrote has come.
    pub(crate) fn has_output(&self) -> bool {
        match self {
            Meter::Sse(sse) => sse.has_output(),
            Meter::Undecided(_) => false,
            Meter::Fixed | Meter::Json(_) | Meter::Opaque { .. } | Meter::Vectors(_) | Meter::Page => true,
        }
    }

    /// Whether it is an error in the clothes of a success, or a page in a model's place.
    pub(crate) fn has_failed(&self) -> bool {
        match self {
            Meter::Json(json) => json.is_error(),
            Meter::Sse(sse) => sse.is_error(),
            Meter::Page => true,
            Meter::Undecided(undecided) => undecided.label == Kind::Page,
            Meter::Fixed | Meter::Opaque { .. } | Meter::Vectors(_) => false,
        }
    }

    /// Whether any text of the model has come, as far as it can be read.
    pub(crate) fn has_text(&self) -> bool {
        match self {
            Meter::Json(json) => json.text_bytes() > 0,
            Meter::Sse(sse) => sse.has_written(),
            Meter::Fixed | Meter::Undecided(_) | Meter::Opaque { .. } | Meter::Vectors(_) | Meter::Page => false,
        }
    }

    /// Fewer tokens than these hardly make the text that has come.
    pub(crate) fn least_output(&self) -> Tokens {
        match self {
            Meter::Json(json) => least_tokens_of(json.text_bytes()),
            Meter::Sse(sse) => sse.least_output(),
            Meter::Fixed | Meter::Undecided(_) | Meter::Opaque { .. } | Meter::Vectors(_) | Meter::Page => Tokens::ZERO,
        }
    }

    /// Whether everything has come that its client waits for. Whatever ends the reply now does not break it off.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self, Meter::Sse(sse) if sse.is_whole())
    }

    /// Reads the next piece, cut wherever the network cut it.
    pub(crate) fn read(&mut self, piece: &[u8]) -> Passage {
        match self {
            Meter::Fixed | Meter::Vectors(_) | Meter::Page => {}
            Meter::Undecided(undecided) => {
                return match undecided.read(piece) {
                    Ok((decided, passage)) => {
                        *self = decided;
                        passage
                    }
                    Err(passage) => passage,
                };
            }
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
            Meter::Undecided(undecided) => {
                let (mut decided, passage) = undecided.decide(undecided.label, &[]);
                let mut held = if let Passage::Replaced(bytes) = passage { bytes } else { Vec::new() };
                held.extend(decided.finish());
                *self = decided;
                held
            }
            Meter::Fixed | Meter::Json(_) | Meter::Opaque { .. } | Meter::Vectors(_) | Meter::Page => Vec::new(),
        }
    }

    pub(crate) fn reading(&self) -> Reading {
        match self {
            Meter::Fixed | Meter::Undecided(_) | Meter::Page => Reading::default(),
            Meter::Json(json) | Meter::Vectors(json) => json.reading(),
            Meter::Sse(sse) => sse.reading(),
            Meter::Opaque { bytes, is_compressed: false } => Reading { reported: None, counted: tokens_of(*bytes) },
            // Text shrinks to about a quarter.
            Meter::Opaque { bytes, is_compressed: true } => Reading { reported: None, counted: Tokens(*bytes) },
        }
    }
}

impl Undecided {
    /// The meter that the reply turns out to need, and what becomes of the piece; only the latter while that is not known.
    fn read(&mut self, piece: &[u8]) -> Result<(Meter, Passage), Passage> {
        let kind = if self.begun.is_empty() {
            Kind::beginning_with(piece, self.label)
        } else {
            Kind::beginning_with(&[&self.begun, piece].concat(), self.label)
        };
        if let Some(kind) = kind {
            return Ok(self.decide(kind, piece));
        }
        self.begun.extend_from_slice(piece);
        Err(if self.drop_usage { Passage::Replaced(Vec::new()) } else { Passage::Unchanged })
    }

    fn decide(&mut self, kind: Kind, piece: &[u8]) -> (Meter, Passage) {
        let mut meter = match kind {
            Kind::Events => Meter::Sse(Box::new(sse::SseMeter::new(self.shape, self.drop_usage, self.sequences))),
            Kind::Json => Meter::Json(json::JsonMeter::new(self.shape, self.sequences)),
            Kind::Page => Meter::Page,
            Kind::Other => Meter::Opaque { bytes: 0, is_compressed: false },
        };
        let begun = std::mem::take(&mut self.begun);
        if begun.is_empty() {
            let passage = meter.read(piece);
            return (meter, passage);
        }
        let all = [&begun, piece].concat();
        let passage = match meter.read(&all) {
            // What was held goes on with it.
            Passage::Unchanged if self.drop_usage => Passage::Replaced(all),
            passage => passage,
        };
        (meter, passage)
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

    fn head<'a>(kind: Option<&'a str>, encoding: Option<&'a str>) -> Head<'a> {
        Head { content_type: kind, content_encoding: encoding, ..Head::default() }
    }

    #[test]
    fn the_reply_s_label_and_its_first_bytes_choose_the_meter() {
        let meter = |kind, encoding, first: &str| {
            let mut meter = Meter::for_reply(Shape::OpenAi, head(kind, encoding), true, Sequences::ONE);
            meter.read(first.as_bytes());
            meter
        };
        for label in [Some("text/event-stream"), Some("application/json"), Some("text/plain"), Some("text/html"), None]
        {
            assert!(matches!(meter(label, Some("none"), "data: x"), Meter::Sse(_)), "{label:?}");
            assert!(matches!(meter(label, Some("identity"), "{"), Meter::Json(_)), "{label:?}");
            assert!(matches!(meter(label, Some("gzip"), "{"), Meter::Opaque { is_compressed: true, .. }));
        }
        assert!(matches!(meter(Some("text/html"), None, "<a>"), Meter::Page));
        assert!(matches!(meter(Some("text/plain"), None, "hi"), Meter::Opaque { is_compressed: false, .. }));
        let fixed = Meter::for_reply(Shape::Fixed, head(Some("application/json"), None), false, Sequences::ONE);
        assert!(matches!(fixed, Meter::Fixed));
    }

    #[test]
    fn an_unreadable_reply_is_estimated_by_its_length() {
        let mut meter = Meter::for_reply(Shape::OpenAi, head(None, None), false, Sequences::ONE);
        assert_eq!(meter.read(b"12345"), Passage::Unchanged);
        assert_eq!(meter.reading(), Reading { reported: None, counted: Tokens(2) });
        let mut meter = Meter::for_reply(Shape::OpenAi, head(None, Some("br")), false, Sequences::ONE);
        assert_eq!(meter.read(b"12345"), Passage::Unchanged);
        assert_eq!(meter.reading(), Reading { reported: None, counted: Tokens(5) });
    }

    /// What comes before it is known what comes is held only where something may be taken out, and never lost.
    #[test]
    fn what_is_held_until_a_reply_is_known_goes_on() {
        for (text, goes_on) in
            [("data: {}\n\n", "data: {}\n\n"), ("dat", "dat"), ("dates", "dates"), ("  {}", "  {}"), ("", "")]
        {
            for drop_usage in [false, true] {
                let mut meter = Meter::for_reply(Shape::OpenAi, head(None, None), drop_usage, Sequences::ONE);
                let mut seen = Vec::new();
                for piece in text.as_bytes().chunks(1) {
                    match meter.read(piece) {
                        Passage::Unchanged => seen.extend_from_slice(piece),
                        Passage::Replaced(bytes) => seen.extend(bytes),
                    }
                }
                seen.extend(meter.finish());
                assert_eq!(String::from_utf8_lossy(&seen), goes_on, "{text} {drop_usage}");
            }
        }
    }
}
