//! Usage from a stream of server-sent events, cut at any byte.
//!
//! An event ends at an empty line (LF or CRLF). Events pass byte for byte, except that the one event which we
//! asked for and the client did not (no choices, only usage) is taken out; only then is an incomplete event held.

mod chunk;

use super::{Counts, Passage, Reading};
use chunk::Chunk;
use sluice_policy::units::Tokens;

/// A longer event passes unread, and counts as one piece of content.
const EVENT_MAX_BYTES: usize = 256 << 10;

pub(crate) struct SseMeter {
    drop_usage: bool,
    /// The beginning of an event whose end has not come yet.
    event: Vec<u8>,
    /// The current event is over [`EVENT_MAX_BYTES`].
    oversized: bool,
    /// The current line holds something besides a carriage return.
    line_has_content: bool,
    reported: Option<Counts>,
    counted: u64,
}

/// Replies are tenants' data: `Debug` shows the counts only.
impl std::fmt::Debug for SseMeter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SseMeter({:?}, {} counted)", self.reported, self.counted)
    }
}

impl SseMeter {
    pub(super) fn new(drop_usage: bool) -> Self {
        Self { drop_usage, event: Vec::new(), oversized: false, line_has_content: false, reported: None, counted: 0 }
    }

    pub(super) fn drops_usage(&self) -> bool {
        self.drop_usage
    }

    pub(super) fn reading(&self) -> Reading {
        Reading { reported: self.reported, counted: Tokens(self.counted) }
    }

    pub(super) fn read(&mut self, piece: &[u8]) -> Passage {
        let mut passed = Vec::new();
        let mut rest = piece;
        while let Some(end) = self.event_end(rest) {
            let Some((head, tail)) = rest.split_at_checked(end) else { break };
            self.end_event(head, &mut passed);
            rest = tail;
        }
        self.keep(rest, &mut passed);
        if self.drop_usage { Passage::Replaced(passed) } else { Passage::Unchanged }
    }

    /// The stream is over: what stands in the buffer is an event that nobody ended. It is read all the same, and
    /// passes unless it is the one to be dropped.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        let mut passed = Vec::new();
        if !self.event.is_empty() || self.oversized {
            self.end_event(&[], &mut passed);
        }
        passed
    }

    /// Where the current event ends in `piece`: after the line feed of an empty line.
    fn event_end(&mut self, piece: &[u8]) -> Option<usize> {
        for (at, byte) in piece.iter().enumerate() {
            match byte {
                b'\n' if self.line_has_content => self.line_has_content = false,
                b'\n' => return Some(at + 1),
                b'\r' => {}
                _ => self.line_has_content = true,
            }
        }
        None
    }

    fn end_event(&mut self, tail: &[u8], passed: &mut Vec<u8>) {
        let mut event = std::mem::take(&mut self.event);
        let is_oversized = std::mem::take(&mut self.oversized) || event.len() + tail.len() > EVENT_MAX_BYTES;
        let dropped = if is_oversized {
            self.counted += 1;
            false
        } else if event.is_empty() {
            self.meter(tail)
        } else {
            event.extend_from_slice(tail);
            let dropped = self.meter(&event);
            event.truncate(event.len() - tail.len());
            dropped
        };
        if self.drop_usage && !dropped {
            passed.extend_from_slice(&event);
            passed.extend_from_slice(tail);
        }
    }

    /// Keeps the beginning of an event for later. Over the bound it is no longer kept, and no longer held.
    fn keep(&mut self, rest: &[u8], passed: &mut Vec<u8>) {
        if !self.oversized && self.event.len() + rest.len() <= EVENT_MAX_BYTES {
            self.event.extend_from_slice(rest);
            return;
        }
        self.oversized = true;
        let event = std::mem::take(&mut self.event);
        if self.drop_usage {
            passed.extend_from_slice(&event);
            passed.extend_from_slice(rest);
        }
    }

    /// Reads a whole event; tells whether it is the one that the client did not ask for.
    fn meter(&mut self, event: &[u8]) -> bool {
        let Some(chunk) = Chunk::read(event) else { return false };
        self.counted = self.counted.saturating_add(chunk.tokens);
        self.reported = chunk.usage.or(self.reported);
        self.drop_usage && chunk.is_usage_only
    }
}

#[cfg(test)]
mod tests;
