//! Reads in the replies of a stream which of them ends a message, cut at any byte.
//!
//! Servers answer one for one, but for Triton's decoupled models: those answer a message as often as they like, or not at
//! all. Triton says in each reply of a stream whether it was the last one, by the parameter `triton_final_response`; where
//! the last one had been sent before the model knew that it was, an empty reply says so if the message asked for it. So
//! every message asks, and where its client did not, the empty reply is taken out again.

use super::wire::{Value, fields, parameter};

const HEAD_BYTES: usize = 5;
/// So much of a reply is looked at. What says how it ends stands before its tensors; of a longer name of the request, which
/// is repeated there, nothing is known, and its message runs until its stream ends.
const LOOKED_AT_BYTES: usize = 4096;
const ASKS_FOR_FINAL: &str = "triton_enable_empty_final_response";
const IS_FINAL: &str = "triton_final_response";

const PARAMETERS_FIELD: u64 = 4;
const OUTPUTS_FIELD: u64 = 5;

/// The field that makes a message ask for its empty final reply.
pub(crate) fn asks_for_final() -> Vec<u8> {
    const NAME_BYTES: u8 = ASKS_FOR_FINAL.len() as u8;
    // A map's entry: field 1 is its name, field 2 a parameter whose field 1 is the truth.
    let mut field = vec![0x22, NAME_BYTES + 6, 0x0a, NAME_BYTES];
    field.extend_from_slice(ASKS_FOR_FINAL.as_bytes());
    field.extend([0x12, 2, 0x08, 1]);
    field
}

/// Whether the client has asked for the empty final reply of this message itself. Of a name that stands twice the last holds.
pub(crate) fn has_asked_for_final(message: &[u8]) -> bool {
    let entries = fields(message).filter_map(|field| match field {
        (PARAMETERS_FIELD, Value::Bytes(entry)) => parameter(entry, ASKS_FOR_FINAL),
        _ => None,
    });
    entries.last().unwrap_or(false)
}

/// The replies of one stream so far.
#[derive(Debug, Default)]
pub(crate) struct Replies {
    /// The current frame: its head, and what is looked at of its message.
    frame: Vec<u8>,
    /// Bytes of its message that have not come.
    left: u64,
    /// Its bytes do not go on before it is complete.
    is_held: bool,
}

/// What a reply is to its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Verdict {
    ends_message: bool,
    /// It says that and nothing else.
    is_empty: bool,
}

impl Replies {
    /// Reads the next piece: what goes on of it, and how many messages it ends. `hides_final`: the empty final reply was our
    /// wish, so the client must not see it.
    pub(crate) fn read(&mut self, mut piece: &[u8], hides_final: bool) -> (Vec<u8>, u64) {
        let (mut passed, mut ended) = (Vec::new(), 0);
        while let Some((first, rest)) = piece.split_first() {
            if self.frame.len() < HEAD_BYTES {
                self.frame.push(*first);
                piece = rest;
                self.begin(hides_final, &mut passed);
            } else {
                piece = self.take(piece, &mut passed);
            }
            if self.frame.len() >= HEAD_BYTES && self.left == 0 {
                let verdict = self.verdict();
                ended += u64::from(verdict.ends_message);
                if self.is_held && !verdict.is_empty {
                    passed.extend_from_slice(&self.frame);
                }
                *self = Self::default();
            }
        }
        (passed, ended)
    }

    /// What is still held of a reply that breaks off.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        let Self { frame, is_held, .. } = std::mem::take(self);
        if is_held || frame.len() < HEAD_BYTES { frame } else { Vec::new() }
    }

    /// The head is complete.
    fn begin(&mut self, hides_final: bool, passed: &mut Vec<u8>) {
        let Ok([_, length @ ..]) = <[u8; HEAD_BYTES]>::try_from(self.frame.as_slice()) else { return };
        self.left = u64::from(u32::from_be_bytes(length));
        self.is_held = hides_final && self.left <= LOOKED_AT_BYTES as u64;
        if !self.is_held {
            passed.extend_from_slice(&self.frame);
        }
    }

    /// Takes what has come of the message, and returns what is behind it.
    fn take<'a>(&mut self, piece: &'a [u8], passed: &mut Vec<u8>) -> &'a [u8] {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX);
        let (part, rest) = piece.split_at_checked(wanted).unwrap_or((piece, &[]));
        self.left = self.left.saturating_sub(part.len() as u64);
        let room = (HEAD_BYTES + LOOKED_AT_BYTES).saturating_sub(self.frame.len());
        self.frame.extend_from_slice(part.get(..room).unwrap_or(part));
        if !self.is_held {
            passed.extend_from_slice(part);
        }
        rest
    }

    fn verdict(&self) -> Verdict {
        let Some((head, message)) = self.frame.split_first_chunk::<HEAD_BYTES>() else {
            return Verdict { ends_message: false, is_empty: false };
        };
        let [_, length @ ..] = *head;
        let is_whole = u64::from(u32::from_be_bytes(length)) <= message.len() as u64;
        let (mut is_error, mut is_final, mut has_output) = (false, None, false);
        for field in fields(message) {
            match field {
                (1, Value::Bytes(error)) => is_error |= !error.is_empty(),
                (2, Value::Bytes(reply)) => {
                    for field in fields(reply) {
                        match field {
                            (PARAMETERS_FIELD, Value::Bytes(entry)) => {
                                is_final = parameter(entry, IS_FINAL).or(is_final);
                            }
                            (OUTPUTS_FIELD.., _) => has_output = true,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        // Another server does not say, and answers one for one.
        let ends_message = is_error || is_final.unwrap_or(is_whole || has_output);
        Verdict { ends_message, is_empty: is_final == Some(true) && !is_error && !has_output && is_whole }
    }
}

#[cfg(test)]
mod tests;
