//! Dialects: how a kind of client writes its calls and expects its errors.

mod openai_chat;
mod raw;
mod weigh;

use sluice_policy::units::Tokens;
use sluice_policy::wire::Refusal;
use std::ops::Range;

/// What a route's clients speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// OpenAI's `/v1/chat/completions`.
    OpenAiChat,
}

/// What a request's body says about the call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) model: String,
    pub(crate) stream: bool,
    /// Per sequence.
    pub(crate) max_tokens: Option<Tokens>,
    pub(crate) sequences: u32,
    /// Estimated from the prompt's length.
    pub(crate) input_tokens: Tokens,
    /// How to make a stream report its usage, when the client did not ask for that itself.
    pub(crate) usage_request: Option<BodyEdit>,
}

/// The replacement of some bytes of a body; the rest stays as the client wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BodyEdit {
    pub(crate) range: Range<usize>,
    pub(crate) text: &'static str,
}

impl BodyEdit {
    /// The edited body; `None` when the edit does not fit it.
    pub(crate) fn apply(&self, body: &[u8]) -> Option<Vec<u8>> {
        let mut edited = Vec::with_capacity(body.len().saturating_add(self.text.len()));
        edited.extend_from_slice(body.get(..self.range.start)?);
        edited.extend_from_slice(self.text.as_bytes());
        edited.extend_from_slice(body.get(self.range.end..)?);
        Some(edited)
    }
}

/// What is wrong with a body: a sentence, and the field at fault when there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) message: String,
    pub(crate) param: Option<&'static str>,
}

impl Fault {
    fn body(problem: impl std::fmt::Display) -> Self {
        Self { message: format!("The request body {problem}."), param: None }
    }

    fn field(name: &'static str, problem: impl std::fmt::Display) -> Self {
        Self { message: format!("'{name}' {problem}."), param: Some(name) }
    }
}

impl Dialect {
    /// Reads a whole body. What is read here must be what the upstream reads, so nothing ambiguous passes.
    ///
    /// # Errors
    /// The first thing wrong with it.
    pub(crate) fn parse(self, body: &[u8], sequences_max: u32) -> Result<Call, Fault> {
        match self {
            Dialect::OpenAiChat => openai_chat::parse(body, sequences_max),
        }
    }

    /// The body of an error reply.
    pub(crate) fn error_body(self, refusal: &Refusal) -> Vec<u8> {
        match self {
            Dialect::OpenAiChat => openai_chat::error_body(refusal),
        }
    }
}
