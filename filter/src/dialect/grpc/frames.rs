//! Reads the name of the model out of gRPC messages as they come, cut at any byte, and keeps nothing else of them.
//!
//! A frame is a flag, a length of four bytes and a protobuf message. Of `inference.ModelInferRequest` only field 1,
//! `model_name`, is looked at; of a field that stands twice protobuf takes the last, so it may stand twice only with one
//! value.

use sluice_policy::wire::{Reason, Refusal};

const HEAD_BYTES: usize = 5;
const MODEL_NAME_FIELD: u64 = 1;
const MODEL_BYTES_MAX: u64 = 256;
/// The longest varint that protobuf allows.
const VARINT_BYTES_MAX: u32 = 10;

/// The frames of one call so far.
#[derive(Clone, Debug)]
pub(crate) struct Frames {
    state: State,
    /// Bytes of the current message that have not come.
    left: u64,
    /// The one model of this call.
    model: Option<String>,
    /// The current message has named it.
    is_named: bool,
    complete: u64,
    message_max_bytes: u64,
}

#[derive(Clone, Debug)]
enum State {
    Head(Vec<u8>),
    /// Of the next field: its number and wire type.
    Key(Varint),
    /// The number that stands where a value would.
    Number(Varint),
    /// The length of a value, of this field.
    Length(u64, Varint),
    /// So many bytes of a value that is not looked at.
    Skip(u64),
    /// The model's name, and how long it will be.
    Name(u64, Vec<u8>),
}

#[derive(Clone, Copy, Debug, Default)]
struct Varint {
    value: u64,
    bytes: u32,
}

impl Varint {
    /// Takes the next byte; the number when it is complete.
    fn push(&mut self, byte: u8) -> Result<Option<u64>, Wrong> {
        if self.bytes >= VARINT_BYTES_MAX {
            return Err(Wrong::NotProtobuf);
        }
        self.value |= u64::from(byte & 0x7f).checked_shl(7 * self.bytes).unwrap_or(0);
        self.bytes += 1;
        Ok((byte & 0x80 == 0).then_some(self.value))
    }
}

/// Why a call cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    Compressed,
    NotProtobuf,
    TooLarge,
    NoModel,
    /// Admitted for one model, and asking for another.
    OtherModel,
    CutOff,
    /// More than one in a call that has one.
    Several,
}

impl Wrong {
    pub(crate) fn refusal(self) -> Refusal {
        let (reason, message) = match self {
            Wrong::Compressed => (Reason::UnsupportedEncoding, "Compressed messages are not read; send plain ones."),
            Wrong::NotProtobuf => (Reason::InvalidBody, "A message of the request is not valid protobuf."),
            Wrong::TooLarge => (Reason::BodyTooLarge, "A message of the request is too large."),
            Wrong::NoModel => (Reason::InvalidBody, "model_name is required: a text of 1 to 256 bytes."),
            Wrong::OtherModel => (Reason::InvalidBody, "All messages of one call must have the same model_name."),
            Wrong::CutOff => (Reason::InvalidBody, "The request ends in the middle of a message."),
            Wrong::Several => (Reason::InvalidBody, "A call of this method has one message."),
        };
        Refusal::new(reason, message)
    }
}

impl Frames {
    pub(crate) fn new(message_max_bytes: u64) -> Self {
        Self { state: State::Head(Vec::new()), left: 0, model: None, is_named: false, complete: 0, message_max_bytes }
    }

    /// The model that the messages name.
    pub(crate) fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// How many messages have come in full.
    pub(crate) fn complete(&self) -> u64 {
        self.complete
    }

    /// The request is over.
    pub(crate) fn end(&self) -> Result<(), Wrong> {
        match &self.state {
            State::Head(head) if head.is_empty() => Ok(()),
            _ => Err(Wrong::CutOff),
        }
    }

    /// Reads the next piece of the request's body.
    pub(crate) fn push(&mut self, mut piece: &[u8]) -> Result<(), Wrong> {
        while let Some((first, rest)) = piece.split_first() {
            piece = match &mut self.state {
                State::Skip(wanted) => {
                    let taken = (*wanted).min(piece.len() as u64);
                    *wanted -= taken;
                    self.left = self.left.saturating_sub(taken);
                    piece.get(usize::try_from(taken).unwrap_or(usize::MAX)..).unwrap_or_default()
                }
                State::Head(head) => {
                    head.push(*first);
                    rest
                }
                State::Key(_) | State::Number(_) | State::Length(..) | State::Name(..) => {
                    self.left = self.left.saturating_sub(1);
                    self.field_byte(*first)?;
                    rest
                }
            };
            self.turn()?;
        }
        Ok(())
    }

    fn field_byte(&mut self, byte: u8) -> Result<(), Wrong> {
        match &mut self.state {
            State::Key(varint) => {
                if let Some(key) = varint.push(byte)? {
                    self.state = after_key(key)?;
                    if matches!(self.state, State::Skip(bytes) if bytes > self.left) {
                        return Err(Wrong::NotProtobuf);
                    }
                }
            }
            State::Number(varint) => {
                if varint.push(byte)?.is_some() {
                    self.state = State::Key(Varint::default());
                }
            }
            State::Length(field, varint) => {
                if let Some(length) = varint.push(byte)? {
                    let is_name = *field == MODEL_NAME_FIELD;
                    self.state = self.after_length(is_name, length)?;
                }
            }
            State::Name(_, name) => name.push(byte),
            State::Head(_) | State::Skip(_) => {}
        }
        Ok(())
    }

    fn after_length(&self, is_name: bool, length: u64) -> Result<State, Wrong> {
        if length > self.left {
            return Err(Wrong::NotProtobuf);
        }
        match (is_name, length) {
            (true, 1..=MODEL_BYTES_MAX) => Ok(State::Name(length, Vec::new())),
            (true, _) => Err(Wrong::NoModel),
            (false, _) => Ok(State::Skip(length)),
        }
    }

    /// Goes on to the next state where the current one has all its bytes, and to the next message where that has.
    fn turn(&mut self) -> Result<(), Wrong> {
        match &self.state {
            State::Head(head) if head.len() >= HEAD_BYTES => self.begin_message(&head.clone())?,
            State::Skip(0) => self.state = State::Key(Varint::default()),
            State::Name(length, name) if name.len() as u64 >= *length => {
                let name = String::from_utf8(name.clone()).map_err(|_| Wrong::NotProtobuf)?;
                self.is_named = true;
                if self.model.as_ref().is_some_and(|model| *model != name) {
                    return Err(Wrong::OtherModel);
                }
                self.model = Some(name);
                self.state = State::Key(Varint::default());
            }
            _ => {}
        }
        let is_between_fields = matches!(self.state, State::Key(Varint { bytes: 0, .. }));
        match (self.left, &self.state) {
            (0, _) if is_between_fields => self.end_message(),
            (0, State::Key(_) | State::Number(_) | State::Length(..) | State::Name(..)) => Err(Wrong::NotProtobuf),
            _ => Ok(()),
        }
    }

    fn begin_message(&mut self, head: &[u8]) -> Result<(), Wrong> {
        let Some(([flag], length)) = head.split_first_chunk::<1>() else { return Ok(()) };
        if *flag != 0 {
            return Err(if *flag == 1 { Wrong::Compressed } else { Wrong::NotProtobuf });
        }
        self.left = u64::from(<[u8; 4]>::try_from(length).map_or(0, u32::from_be_bytes));
        if self.left > self.message_max_bytes {
            return Err(Wrong::TooLarge);
        }
        self.is_named = false;
        self.state = State::Key(Varint::default());
        Ok(())
    }

    fn end_message(&mut self) -> Result<(), Wrong> {
        if !self.is_named {
            return Err(Wrong::NoModel);
        }
        self.complete += 1;
        self.state = State::Head(Vec::new());
        Ok(())
    }
}

/// What follows a field's key, by its wire type. Groups are long gone from protobuf.
fn after_key(key: u64) -> Result<State, Wrong> {
    const FIXED_64: u64 = 8;
    const FIXED_32: u64 = 4;
    // Servers keep 32 bits of a key, so a longer one would mean another field to them.
    if key > u64::from(u32::MAX) {
        return Err(Wrong::NotProtobuf);
    }
    match (key >> 3, key & 7) {
        (0, _) => Err(Wrong::NotProtobuf),
        (MODEL_NAME_FIELD, wire) if wire != 2 => Err(Wrong::NotProtobuf),
        (_, 0) => Ok(State::Number(Varint::default())),
        (_, 1) => Ok(State::Skip(FIXED_64)),
        (field, 2) => Ok(State::Length(field, Varint::default())),
        (_, 5) => Ok(State::Skip(FIXED_32)),
        (_, _) => Err(Wrong::NotProtobuf),
    }
}

#[cfg(test)]
pub(crate) fn message(model: &str, rest: &[u8]) -> Vec<u8> {
    let mut body = vec![0x0a, u8::try_from(model.len()).unwrap()];
    body.extend_from_slice(model.as_bytes());
    body.extend_from_slice(rest);
    let mut frame = vec![0];
    frame.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
    frame.extend(body);
    frame
}

#[cfg(test)]
mod tests;
