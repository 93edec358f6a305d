//! What can be told of an event before it ends: whether it may still be the one that bears a usage and nothing else.
//!
//! Only such an event is worth holding. Its data is a JSON object, so whatever begins otherwise is known at its first
//! byte, and everything else at the brace that closes it: an upstream may end a stream right there, without the empty
//! line, and send trailers, which cannot carry what was held.

use crate::usage::work;

/// How an event's line begins that bears data.
const DATA: &[u8] = b"data:";

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outline {
    line: Line,
    document: Document,
}

#[derive(Clone, Copy, Debug)]
enum Line {
    /// So much of [`DATA`] has come.
    Name(usize),
    Data,
    Other,
}

/// The data so far, as JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Document {
    #[default]
    Empty,
    Open {
        /// Of braces and brackets.
        depth: u32,
        text: Text,
    },
    /// An object is complete, and nothing but space has come after it.
    Closed,
    /// No object, or more than one.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Text {
    Outside,
    Inside,
    Escape,
}

impl Default for Line {
    fn default() -> Self {
        Line::Name(0)
    }
}

impl Outline {
    /// Goes on with the next bytes of the event, cut anywhere.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Document {
        work::on(bytes.len());
        for byte in bytes {
            match (self.line, byte) {
                (_, b'\n' | b'\r') => self.line = Line::default(),
                (Line::Name(matched), byte) if DATA.get(matched) == Some(byte) => {
                    let matched = matched + 1;
                    self.line = if matched == DATA.len() { Line::Data } else { Line::Name(matched) };
                }
                (Line::Name(_), _) => self.line = Line::Other,
                (Line::Data, byte) => self.document = self.document.after(*byte),
                (Line::Other, _) => {}
            }
        }
        self.document
    }
}

impl Document {
    fn after(self, byte: u8) -> Self {
        let outside = |depth: u32| match depth {
            0 => Document::Closed,
            depth => Document::Open { depth, text: Text::Outside },
        };
        match (self, byte) {
            (Document::Empty | Document::Closed, b' ' | b'\t') => self,
            (Document::Empty, b'{') => outside(1),
            (Document::Empty | Document::Closed | Document::Other, _) => Document::Other,
            (Document::Open { depth, text: Text::Outside }, byte) => match byte {
                b'"' => Document::Open { depth, text: Text::Inside },
                b'{' | b'[' => outside(depth.saturating_add(1)),
                b'}' | b']' => outside(depth.saturating_sub(1)),
                _ => self,
            },
            (Document::Open { depth, text: Text::Inside }, byte) => match byte {
                b'"' => outside(depth),
                b'\\' => Document::Open { depth, text: Text::Escape },
                _ => self,
            },
            (Document::Open { depth, text: Text::Escape }, _) => Document::Open { depth, text: Text::Inside },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_told_apart_as_early_as_it_can_be() {
        let open = |depth, text| Document::Open { depth, text };
        for (event, expected) in [
            ("", Document::Empty),
            (": data: x", Document::Empty),
            ("event: x\ndata", Document::Empty),
            ("data: ", Document::Empty),
            ("data:[", Document::Other),
            ("data: {\"a\":[{", open(3, Text::Outside)),
            ("data: {\"}", open(1, Text::Inside)),
            ("data: {\"\\", open(1, Text::Escape)),
            ("data: {\"\\\"}", open(1, Text::Inside)),
            ("data: {\"a\":[{}],\r\ndata: \"b\":{}}", Document::Closed),
            ("data: {} \nevent: x\n", Document::Closed),
            ("data: {} {}", Document::Other),
        ] {
            assert_eq!(Outline::default().read(event.as_bytes()), expected, "{event:?}");
            let mut outline = Outline::default();
            let last = event.bytes().map(|byte| outline.read(&[byte])).last();
            assert_eq!(last.unwrap_or_default(), expected, "{event:?} byte by byte");
        }
    }
}
