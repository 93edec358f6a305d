//! A walk over a JSON document that comes in pieces. It keeps the value of the top-level field `usage` and the length of
//! the text that a model wrote, and nothing else; whether the rest is valid JSON is the client's business.

use crate::usage::work;
use memchr::memchr2;

/// A larger `usage` is none.
const USAGE_BYTES_MAX: usize = 16 << 10;
/// Deeper replies are not walked.
const DEPTH_MAX: usize = 256;
/// Longer names are none of ours.
const NAME_BYTES_MAX: usize = 32;
/// Fields that hold what a model wrote, in any dialect.
const TEXT_FIELDS: [&[u8]; 9] = [
    b"content",
    b"text",
    b"text_output",
    b"reasoning_content",
    b"reasoning",
    b"refusal",
    b"arguments",
    b"thinking",
    b"partial_json",
];

#[derive(Default)]
pub(super) struct Scan {
    /// For each open bracket, whether it is an object's.
    open: Vec<bool>,
    within: Within,
    /// A string that begins now is a field's name.
    expects_name: bool,
    name: Vec<u8>,
    is_text_field: bool,
    /// The bytes of `usage` while they come, and when they have.
    usage: Vec<u8>,
    captures_usage: bool,
    text_bytes: u64,
    /// It has a top-level field that only llama.cpp writes.
    is_of_llama_cpp: bool,
    /// Its top-level `error` is not null, or it is an object of that kind.
    is_error: bool,
    /// The value of the top-level `error` begins with the next byte.
    expects_error: bool,
    /// The beginning of the top-level `object` or `type`, while it comes.
    kind: Option<Vec<u8>>,
    /// The outermost value has ended.
    is_complete: bool,
    /// Something was deeper or longer than what is followed.
    is_beyond_bounds: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Within {
    #[default]
    Structure,
    Name,
    NameEscape,
    Text,
    TextEscape,
}

/// Replies are tenants' data: `Debug` shows the length only.
impl std::fmt::Debug for Scan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scan({} bytes of text)", self.text_bytes)
    }
}

impl Scan {
    /// The last top-level `usage` of a document that is complete.
    pub(super) fn usage(&self) -> Option<&str> {
        let is_whole = self.is_complete && !self.is_beyond_bounds && !self.captures_usage && !self.usage.is_empty();
        std::str::from_utf8(&self.usage).ok().filter(|_| is_whole)
    }

    /// Whether llama.cpp wrote it, by its `timings`.
    pub(super) fn is_of_llama_cpp(&self) -> bool {
        self.is_of_llama_cpp
    }

    /// Whether it says that the server has failed.
    pub(super) fn is_error(&self) -> bool {
        self.is_error
    }

    /// Bytes of what the model wrote, escapes counted as they are written.
    pub(super) fn text_bytes(&self) -> u64 {
        self.text_bytes
    }

    pub(super) fn push(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            let captured_before = self.captures_usage;
            let taken = match self.within {
                Within::Text => self.text(piece),
                Within::Structure | Within::Name | Within::NameEscape | Within::TextEscape => self.byte(piece),
            };
            work::on(taken);
            let (seen, rest) = piece.split_at_checked(taken).unwrap_or((piece, &[]));
            // Neither the colon before the value nor what ends it is a part of it.
            if captured_before && self.captures_usage {
                self.keep(seen);
            }
            piece = rest;
        }
    }

    fn keep(&mut self, usage: &[u8]) {
        if self.usage.len() + usage.len() <= USAGE_BYTES_MAX {
            self.usage.extend_from_slice(usage);
        } else {
            self.is_beyond_bounds = true;
        }
    }

    /// Takes a value's string as far as it goes without a byte that matters; returns the bytes taken.
    fn text(&mut self, piece: &[u8]) -> usize {
        let plain = memchr2(b'"', b'\\', piece).unwrap_or(piece.len());
        if self.is_text_field {
            self.text_bytes = self.text_bytes.saturating_add(plain as u64);
        }
        if let Some(kind) = &mut self.kind {
            let room = NAME_BYTES_MAX.saturating_sub(kind.len());
            kind.extend_from_slice(piece.get(..plain.min(room)).unwrap_or_default());
        }
        match piece.get(plain) {
            Some(b'"') => {
                self.within = Within::Structure;
                self.is_error |= self.kind.take().is_some_and(|kind| kind == b"error");
            }
            Some(_) => self.within = Within::TextEscape,
            None => return plain,
        }
        plain + 1
    }

    fn byte(&mut self, piece: &[u8]) -> usize {
        let Some(byte) = piece.first().copied() else { return 0 };
        match (self.within, byte) {
            (Within::TextEscape, _) => {
                self.text_bytes = self.text_bytes.saturating_add(u64::from(self.is_text_field));
                self.within = Within::Text;
            }
            (Within::NameEscape, _) => {
                self.name_byte(byte);
                self.within = Within::Name;
            }
            (Within::Name, b'"') => self.within = Within::Structure,
            (Within::Name, b'\\') => {
                self.name_byte(byte);
                self.within = Within::NameEscape;
            }
            (Within::Name, _) => self.name_byte(byte),
            (Within::Structure | Within::Text, _) => self.structure(byte),
        }
        1
    }

    /// Bounded, and one byte over the bound is as good as many.
    fn name_byte(&mut self, byte: u8) {
        if self.name.len() <= NAME_BYTES_MAX {
            self.name.push(byte);
        }
    }

    fn structure(&mut self, byte: u8) {
        if self.expects_error && !byte.is_ascii_whitespace() {
            self.expects_error = false;
            // Null and false say that there is none.
            self.is_error |= !matches!(byte, b'n' | b'f');
        }
        match byte {
            b'"' if self.expects_name => {
                self.name.clear();
                self.within = Within::Name;
            }
            b'"' => self.within = Within::Text,
            b':' => self.begin_value(),
            b'{' | b'[' => {
                self.is_beyond_bounds |= self.open.len() >= DEPTH_MAX;
                if !self.is_beyond_bounds {
                    self.open.push(byte == b'{');
                }
                self.expects_name = byte == b'{';
            }
            b'}' | b']' => {
                self.end_top_level_value();
                self.open.pop();
                self.expects_name = false;
                self.is_complete |= self.open.is_empty();
            }
            b',' => {
                self.end_top_level_value();
                self.expects_name = self.open.last() == Some(&true);
            }
            _ => {}
        }
    }

    fn begin_value(&mut self) {
        self.expects_name = false;
        self.is_text_field = TEXT_FIELDS.contains(&self.name.as_slice());
        self.is_of_llama_cpp |= self.open.len() == 1 && self.name == b"timings";
        let is_top_level = self.open.len() == 1;
        self.expects_error = is_top_level && self.name == b"error";
        self.kind = (is_top_level && (self.name == b"object" || self.name == b"type")).then(Vec::new);
        if is_top_level && self.name == b"usage" {
            self.usage.clear();
            self.captures_usage = true;
        }
    }

    /// A comma or a closing bracket of the outermost object ends the value of one of its fields.
    fn end_top_level_value(&mut self) {
        if self.open.len() == 1 {
            self.captures_usage = false;
        }
    }
}
