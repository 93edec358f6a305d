//! Usage from a stream of server-sent events, cut at any byte.
//!
//! An event ends at an empty line, and a line at LF, CR or CRLF. Events pass byte for byte, except that the one event
//! which we asked for and the client did not (no choices, only usage) is taken out; only an incomplete event that may
//! still be this one is held.

mod outline;

use super::reports::Reports;
use super::written::Written;
use super::{Passage, Reading, Sequences, Shape, events, work};
use memchr::memchr2_iter;
use outline::{Document, Outline};
use sluice_policy::units::Tokens;

/// A longer event passes unread, and counts as one piece of content. The last event of a response repeats all of it.
const EVENT_MAX_BYTES: usize = 4 << 20;

pub(crate) struct SseMeter {
    shape: Shape,
    drop_usage: bool,
    /// The beginning of an event whose end has not come yet.
    event: Vec<u8>,
    /// How many bytes of `event` have gone on: all, or none where it may still be the one to be dropped.
    released: usize,
    outline: Outline,
    /// The current event is over [`EVENT_MAX_BYTES`].
    oversized: bool,
    /// The current line is not empty.
    line_has_content: bool,
    /// The last byte was a carriage return, which ended its line: a line feed now belongs to that end.
    after_cr: bool,
    /// What became of the last event, where its last byte was a carriage return and nothing has come since.
    ended_by_cr: Option<Fate>,
    sequences: Sequences,
    reports: Reports,
    /// All output.
    written: Written,
    /// An event said that the server has failed.
    is_error: bool,
    /// The last event has passed.
    is_whole: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Passed,
    Dropped,
}

/// Replies are tenants' data: `Debug` shows the counts only.
impl std::fmt::Debug for SseMeter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SseMeter({:?}, {:?})", self.reports, self.written)
    }
}

impl SseMeter {
    pub(super) fn new(shape: Shape, drop_usage: bool, sequences: Sequences) -> Self {
        Self {
            shape,
            drop_usage,
            event: Vec::new(),
            released: 0,
            outline: Outline::default(),
            oversized: false,
            line_has_content: false,
            after_cr: false,
            ended_by_cr: None,
            sequences,
            reports: Reports::of(sequences),
            written: Written::default(),
            is_error: false,
            is_whole: false,
        }
    }

    pub(super) fn drops_usage(&self) -> bool {
        self.drop_usage
    }

    pub(super) fn reading(&self) -> Reading {
        let Some(counts) = self.reports.counts(self.shape) else {
            return Reading { reported: None, counted: self.written.tokens() };
        };
        let mut counted = self.reports.unreported().tokens();
        if self.sequences.are_several() {
            // llama.cpp tells of each choice without saying which, and never of all. A piece is a token at least.
            counted = counted.max(Tokens(self.written.pieces().saturating_sub(counts.output.0)));
        }
        Reading { reported: Some(counts), counted }
    }

    /// Whether anything that the model wrote has come.
    pub(super) fn has_output(&self) -> bool {
        !self.written.is_empty() || self.reports.has_output()
    }

    /// Fewer tokens than these hardly make the text that has come.
    pub(super) fn least_output(&self) -> Tokens {
        self.written.least_tokens()
    }

    /// Whether it has written anything.
    pub(super) fn has_written(&self) -> bool {
        !self.written.is_empty()
    }

    pub(super) fn is_error(&self) -> bool {
        self.is_error
    }

    pub(super) fn is_whole(&self) -> bool {
        self.is_whole
    }

    pub(super) fn read(&mut self, piece: &[u8]) -> Passage {
        let mut passed = Vec::new();
        let mut rest = self.end_crlf(piece, &mut passed);
        while let Some((head, tail)) = self.event_end(rest).and_then(|end| rest.split_at_checked(end)) {
            let fate = self.end_event(head, &mut passed);
            self.ended_by_cr = self.after_cr.then_some(fate);
            rest = self.end_crlf(tail, &mut passed);
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

    /// Where the current event ends in `piece`: after the line feed or the carriage return of an empty line.
    fn event_end(&mut self, piece: &[u8]) -> Option<usize> {
        let mut begin = 0;
        for at in memchr2_iter(b'\n', b'\r', piece) {
            self.see_text(at - begin);
            begin = at + 1;
            let is_return = piece.get(at) == Some(&b'\r');
            let is_second_half = self.after_cr && !is_return;
            self.after_cr = is_return;
            if is_second_half {
                continue;
            }
            if !std::mem::take(&mut self.line_has_content) {
                work::on(begin);
                return Some(begin);
            }
        }
        self.see_text(piece.len() - begin);
        work::on(piece.len());
        None
    }

    /// The current line goes on with so many bytes.
    fn see_text(&mut self, bytes: usize) {
        if bytes > 0 {
            (self.line_has_content, self.after_cr) = (true, false);
        }
    }

    /// A line feed right after an event that ended with a carriage return is still that event's, and shares its fate;
    /// the event itself has not waited for it, because it may never come. Returns what comes after it.
    fn end_crlf<'a>(&mut self, piece: &'a [u8], passed: &mut Vec<u8>) -> &'a [u8] {
        let Some(next) = piece.first() else { return piece };
        let (Some(fate), b'\n') = (self.ended_by_cr.take(), next) else { return piece };
        self.after_cr = false;
        if self.drop_usage && fate == Fate::Passed {
            passed.push(b'\n');
        }
        piece.get(1..).unwrap_or_default()
    }

    fn end_event(&mut self, tail: &[u8], passed: &mut Vec<u8>) -> Fate {
        let mut event = std::mem::take(&mut self.event);
        let released = std::mem::take(&mut self.released);
        self.outline = Outline::default();
        let is_oversized = std::mem::take(&mut self.oversized) || event.len() + tail.len() > EVENT_MAX_BYTES;
        let dropped = if is_oversized {
            self.written += Written::UNREADABLE;
            self.reports.wrote(Written::UNREADABLE, None);
            false
        } else if event.is_empty() {
            self.meter(tail)
        } else {
            work::on(tail.len());
            event.extend_from_slice(tail);
            let dropped = self.meter(&event);
            event.truncate(event.len() - tail.len());
            dropped
        };
        if self.drop_usage && !dropped {
            work::on(event.len() - released + tail.len());
            passed.extend_from_slice(event.get(released..).unwrap_or_default());
            passed.extend_from_slice(tail);
        }
        if dropped { Fate::Dropped } else { Fate::Passed }
    }

    /// Keeps the beginning of an event for later. Over the bound it is no longer kept, and no longer held.
    fn keep(&mut self, rest: &[u8], passed: &mut Vec<u8>) {
        work::on(rest.len());
        if !self.oversized && self.event.len() + rest.len() <= EVENT_MAX_BYTES {
            self.event.extend_from_slice(rest);
            if self.drop_usage && !self.may_be_dropped(rest) {
                work::on(self.event.len() - self.released);
                passed.extend_from_slice(self.event.get(self.released..).unwrap_or_default());
                self.released = self.event.len();
            }
            return;
        }
        self.oversized = true;
        let event = std::mem::take(&mut self.event);
        let released = std::mem::take(&mut self.released);
        if self.drop_usage {
            work::on(event.len() - released + rest.len());
            passed.extend_from_slice(event.get(released..).unwrap_or_default());
            passed.extend_from_slice(rest);
        }
    }

    /// Whether the event that goes on with `rest` may turn out to be the one that the client did not ask for. What is
    /// false once stays false: a complete document is read once, and can only be spoilt by what follows.
    fn may_be_dropped(&mut self, rest: &[u8]) -> bool {
        if self.released > 0 {
            return false;
        }
        let was_closed = self.outline.read(&[]) == Document::Closed;
        match self.outline.read(rest) {
            Document::Empty | Document::Open { .. } => true,
            Document::Closed => was_closed || events::bears_only_usage(&self.event, self.shape),
            Document::Other => false,
        }
    }

    /// Reads a whole event; tells whether it is the one that the client did not ask for.
    fn meter(&mut self, event: &[u8]) -> bool {
        let Some(event) = events::read(event, self.shape, &mut self.reports) else { return false };
        self.written += event.written;
        self.is_whole |= event.is_last;
        self.is_error |= event.is_error;
        if !event.is_report {
            self.reports.wrote(event.written, event.choice);
        }
        self.drop_usage && event.is_usage_only
    }
}

#[cfg(test)]
mod tests;
