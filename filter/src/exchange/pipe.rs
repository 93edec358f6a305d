//! A stream of messages: each message is a call, and the stream is a pipe.
//!
//! A message is admitted by itself, under an id of its own, and settled when its reply has ended. Until then those behind it
//! wait here: one stream runs one message at a time, on the one slot that it has while it runs. Between two messages
//! ([`Stage::Idle`]) it has none, and nothing is owed for it.
//!
//! What waits is the filter's and not Envoy's, which could let it go on only all at once. For the same reason the client's
//! end cannot wait: Envoy hands it on with whatever goes next, so no more than one message may wait when it comes.

use super::passed::{Passed, Upstream};
use super::{Caller, Ended, Exchange, Stage, Step};
use crate::dialect::grpc;
use crate::refusal;
use crate::usage::{Meter, Passage};
use crate::worker::Worker;
use sluice_policy::units::Millis;
use sluice_policy::wire::{Reason, Refusal};
use std::collections::VecDeque;

const HEAD_BYTES: usize = 5;

#[derive(Debug, Default)]
pub(super) struct Pipe {
    /// What has come and has not gone on: frames whose messages were read already, and the beginning of one.
    waiting: VecDeque<u8>,
    /// How many messages have gone on.
    sent: u64,
    /// The message that goes on now.
    outgoing: Option<Vec<u8>>,
    replies: grpc::Replies,
    /// The message under way did not ask for its empty final reply, so its client must not see it.
    hides_final: bool,
    /// The reply's headers have come.
    has_reply: bool,
}

impl Pipe {
    /// Takes the first frame that waits.
    fn first(&mut self) -> Vec<u8> {
        let mut head = [0; HEAD_BYTES];
        for (byte, came) in head.iter_mut().zip(&self.waiting) {
            *byte = *came;
        }
        let [_, length @ ..] = head;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        let end = length.saturating_add(HEAD_BYTES).min(self.waiting.len());
        let first = self.waiting.drain(..end).collect();
        self.give_back_room();
        first
    }

    /// The VM's memory is one for all calls, and a stream may live long after its largest message. Room is given back by
    /// three quarters at a time, so that many small messages are not moved for each one that goes.
    fn give_back_room(&mut self) {
        if self.waiting.len() < self.waiting.capacity() / 4 {
            self.waiting.shrink_to_fit();
        }
    }

    /// Whether the request's headers have gone upstream.
    pub(super) fn is_open(&self) -> bool {
        self.sent > 0
    }
}

impl Exchange {
    /// The next bytes of a stream of messages, or its end. They are the filter's from now on.
    pub(crate) fn message_piece(&mut self, piece: &[u8], is_end: bool, worker: &mut Worker, now: Millis) -> Step {
        let (Some(pipe), Some(frames)) = (&mut self.pipe, &mut self.frames) else { return Step::Hold };
        if matches!(self.stage, Stage::New | Stage::Over) {
            return Step::Hold;
        }
        pipe.waiting.extend(piece);
        let read = frames.push(piece).and_then(|()| if is_end { frames.end() } else { Ok(()) });
        let (complete, held_bytes) = (frames.complete(), pipe.waiting.len() as u64);
        let (waiting, is_empty) = (complete.saturating_sub(pipe.sent), pipe.waiting.is_empty());
        if let Err(refusal) = self.hold_within_limits(held_bytes, worker) {
            return self.break_off(&refusal, worker, now);
        }
        let wrong = match read {
            Ok(()) if is_end && complete == 0 => Some(grpc::Wrong::CutOff),
            other => other.err(),
        };
        match wrong {
            Some(wrong) => self.break_off(&wrong.refusal(), worker, now),
            None if is_end && waiting > 1 => self.break_off(&closed_early(waiting), worker, now),
            None if is_end && is_empty => Step::Continue,
            None => self.next_message(worker),
        }
    }

    /// Asks for the next message, if there is one and none is under way.
    pub(crate) fn next_message(&mut self, worker: &mut Worker) -> Step {
        let (Some(pipe), Some(frames)) = (&self.pipe, &self.frames) else { return Step::Hold };
        if frames.complete() <= pipe.sent {
            return Step::Hold;
        }
        let held_bytes = pipe.waiting.len() as u64;
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Reading(caller) | Stage::Idle(caller) => self.ask(caller, None, held_bytes, worker),
            other => {
                self.stage = other;
                Step::Hold
            }
        }
    }

    /// Lets the first message that waits go on, and counts what is left. Returns what the reply has come to before it.
    pub(super) fn send_message(&mut self, worker: &mut Worker) -> Option<Upstream> {
        let pipe = self.pipe.as_mut()?;
        let mut message = pipe.first();
        pipe.sent += 1;
        pipe.hides_final = !grpc::has_asked_for_final(message.get(HEAD_BYTES..).unwrap_or_default());
        let wish = if pipe.hides_final { grpc::asks_for_final() } else { Vec::new() };
        let fields = [self.rename.as_deref().unwrap_or_default(), &wish].concat();
        if !fields.is_empty() {
            message = grpc::amended(&message, &fields);
        }
        pipe.outgoing = Some(message);
        let (has_reply, left_bytes) = (pipe.has_reply, pipe.waiting.len() as u64);
        if let Some(holding) = self.holding {
            worker.holdings.keep(holding, left_bytes);
        }
        Some(if has_reply { Upstream::Replying { is_success: true, meter: Meter::Fixed } } else { Upstream::Silent })
    }

    /// What goes upstream now instead of what Envoy holds, where that is something else.
    pub(crate) fn messages_to_send(&mut self, held: impl FnOnce() -> Vec<u8>) -> Option<Vec<u8>> {
        match &mut self.pipe {
            Some(pipe) => pipe.outgoing.take(),
            None => self.rename.as_ref().map(|field| grpc::amended(&held(), field)),
        }
    }

    /// The next piece of a stream's replies: a reply that ends the message under way settles it.
    pub(super) fn message_replies(&mut self, piece: &[u8], is_end: bool, worker: &mut Worker, now: Millis) -> Passage {
        let Some(pipe) = &mut self.pipe else { return Passage::Unchanged };
        let is_failure = matches!(
            &self.stage,
            Stage::Passed(Passed { upstream: Upstream::Silent | Upstream::Replying { is_success: false, .. }, .. })
        );
        if is_failure {
            if is_end {
                self.reply_ended(worker, now);
            }
            return Passage::Unchanged;
        }
        let (mut passed_on, ended) = pipe.replies.read(piece, pipe.hides_final);
        if is_end {
            passed_on.extend(pipe.replies.finish());
        }
        if let Stage::Passed(passed) = &mut self.stage
            && !piece.is_empty()
        {
            passed.first_output_at.get_or_insert(now);
        }
        if ended > 0 {
            self.message_ended(worker, now);
        }
        if is_end {
            self.reply_ended(worker, now);
        }
        Passage::Replaced(passed_on)
    }

    /// The message under way has its reply. Its caller may send the next.
    fn message_ended(&mut self, worker: &mut Worker, now: Millis) {
        let Stage::Passed(passed) = &mut self.stage else { return };
        let caller = passed.caller.take();
        self.settle_complete(worker, now);
        if let Some(caller) = caller {
            self.stage = Stage::Idle(caller);
        }
    }

    /// The reply's headers have come, or its end: no further message may follow the end.
    pub(super) fn note_reply(&mut self, is_end: bool, worker: &mut Worker, now: Millis) {
        let Some(pipe) = &mut self.pipe else { return };
        pipe.has_reply = true;
        match &self.stage {
            Stage::Asking(_) if is_end => self.abandoned(Ended::ByUpstream, worker, now),
            Stage::Idle(_) if is_end => {
                self.release(worker);
                self.stage = Stage::Over;
            }
            _ => {}
        }
    }

    /// Whether this is a stream with no message under way, and whether the next one has begun to come.
    pub(crate) fn idles(&self) -> Option<bool> {
        match (&self.stage, &self.pipe) {
            (Stage::Idle(_), Some(pipe)) => Some(!pipe.waiting.is_empty()),
            _ => None,
        }
    }

    fn hold_within_limits(&mut self, held_bytes: u64, worker: &mut Worker) -> Result<(), Refusal> {
        // A frame's head is no part of its message.
        if held_bytes > self.config.body_max_bytes.saturating_add(HEAD_BYTES as u64) {
            let message =
                format!("The messages that wait in this stream are larger than {} bytes.", self.config.body_max_bytes);
            return Err(refusal::own(Reason::BodyTooLarge, message));
        }
        self.hold(held_bytes, worker)
    }

    /// Takes the caller of a stream along, from message to message.
    pub(super) fn caller_to_keep(&self, caller: Caller) -> Option<Caller> {
        self.pipe.is_some().then_some(caller)
    }
}

/// The refusal of a stream that has no message under way for too long.
pub(crate) fn idle_too_long(limit: Millis) -> Refusal {
    refusal::own(Reason::RequestTimeout, format!("No message was under way in this stream for {limit}."))
}

fn closed_early(waiting: u64) -> Refusal {
    let message = format!(
        "The client ended its side of the stream while {waiting} messages waited for their turn; end it when their replies \
         have come."
    );
    refusal::own(Reason::InvalidBody, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: usize = 1 << 20;

    fn frame(length: usize) -> Vec<u8> {
        let head = u32::try_from(length).unwrap().to_be_bytes();
        [&[0][..], &head, &vec![7; length]].concat()
    }

    #[test]
    fn a_stream_keeps_no_room_for_messages_that_have_gone_on() {
        let mut pipe = Pipe::default();
        pipe.waiting.extend(frame(LARGE));
        pipe.waiting.extend(frame(10));
        assert_eq!(pipe.first(), frame(LARGE));
        assert!(pipe.waiting.capacity() < 100, "{} bytes for one small message", pipe.waiting.capacity());
        assert_eq!(pipe.first(), frame(10));
        assert_eq!(pipe.waiting.capacity(), 0);
    }

    #[test]
    fn messages_that_wait_are_moved_now_and_then_and_not_for_each_that_goes() {
        let mut pipe = Pipe::default();
        let count = 10_000;
        (0..count).for_each(|_| pipe.waiting.extend(frame(1)));
        let mut rooms: Vec<usize> = (0..count).map(|_| (pipe.first(), pipe.waiting.capacity()).1).collect();
        rooms.dedup();
        assert!(rooms.len() < 20, "moved {} times", rooms.len());
        assert_eq!(rooms.last(), Some(&0));
    }
}
