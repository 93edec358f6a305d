//! Dialects: how a kind of client writes its calls, expects its errors, and is told what was used.
//!
//! [`TABLE`] is all there is: a path that no dialect's route lists is 404. A dialect is one module and one line here.

mod anthropic;
mod edit;
mod fields;
pub(crate) mod grpc;
mod kserve;
mod openai;
mod raw;
mod request;
mod servers;
mod turn;
mod weigh;

use crate::refusal::Style;
use crate::usage::Shape;
pub(crate) use edit::{BodyEdit, Limits, apply, length_after};
pub(crate) use openai::models::body as models_body;
pub(crate) use servers::steers;
use sluice_policy::units::Tokens;
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
pub(crate) use turn::{Levels, Turn};

/// Every dialect, by its name in the configuration.
const TABLE: &[&Spec] = &[
    &openai::chat::SPEC,
    &openai::completions::SPEC,
    &openai::responses::SPEC,
    &openai::embeddings::SPEC,
    &openai::models::SPEC,
    &openai::media::SPEC,
    &openai::media::UPLOADS,
    &anthropic::MESSAGES,
    &anthropic::COUNT_TOKENS,
    &kserve::INFER,
    &kserve::GENERATE,
    &kserve::GENERATE_STREAM,
    &grpc::INFER,
    &grpc::STREAM_INFER,
    &request::SPEC,
];

/// What a route's clients speak: an entry of [`TABLE`].
#[derive(Clone, Copy)]
pub(crate) struct Dialect(&'static Spec);

/// All that is particular to a dialect.
pub(crate) struct Spec {
    /// In the configuration.
    name: &'static str,
    /// Where its servers listen, for routes that name no path. `{model}` and `{version}` stand for one segment.
    paths: &'static [&'static str],
    /// `None`: any.
    method: Option<&'static str>,
    /// What its servers take from the query: versions and switches, nothing that a call is admitted for.
    query: &'static [&'static str],
    reads: Reads,
    style: Style,
    reply: Shape,
}

/// What is read of a request before the service is asked about it.
#[derive(Clone, Copy)]
pub(crate) enum Reads {
    /// The whole body, as JSON.
    Json(Parse),
    /// Nothing, but the body must be there: a slot must not be taken by a slow upload.
    Length,
    /// Messages of a gRPC call: up to the end of the body, or of the first message where the call is a stream.
    Messages { is_stream: bool },
    /// Nothing: the service itself answers which models there are.
    Models,
}

/// Reads a whole body. What is read here must be what the upstream reads, so nothing ambiguous passes.
///
/// # Errors
/// The first thing wrong with it.
pub(crate) type Parse = fn(body: &[u8], rules: Rules) -> Result<Call, Fault>;

/// What the configuration demands of every body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) sequences_max: u32,
    /// Only fields of the dialect's API may be there.
    pub(crate) strict_fields: bool,
    /// The path names the model, so the body need not.
    pub(crate) path_names_model: bool,
}

impl Rules {
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) const TEST: Rules = Rules { sequences_max: 16, strict_fields: false, path_names_model: false };
}

/// What a request's body says about the call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Call {
    /// `None` where only the path names it.
    pub(crate) model: Option<String>,
    pub(crate) stream: bool,
    /// Per sequence.
    pub(crate) max_tokens: Option<Tokens>,
    /// At least 1, each with the model's context to itself.
    pub(crate) prompts: u32,
    /// That all prompts together yield.
    pub(crate) sequences: u32,
    /// `n` of a call whose prompt may be a list; 0 where it says none.
    pub(crate) n: u32,
    /// How often the server may ask the model, each time with the context to itself: more than once where it runs tools.
    pub(crate) turns: u32,
    /// The reply may repeat the prompt.
    pub(crate) echoes: bool,
    /// Estimated from the prompt's length.
    pub(crate) input_tokens: Tokens,
    /// `None`: the client asks for its usage itself, or its stream reports it anyway.
    pub(crate) usage_request: Option<UsageRequest>,
    /// Where the model's name stands, its quotes included.
    pub(crate) model_place: Option<Range<usize>>,
    pub(crate) limits: Limits,
    /// In its server's own queue; `None` where its body is not one of a known server.
    pub(crate) turn: Option<Turn>,
}

/// How to make a stream report its usage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UsageRequest {
    pub(crate) edit: BodyEdit,
    /// No server would report without it, so the client must not see the event.
    pub(crate) hides_event: bool,
}

/// What is wrong with a body: a sentence, and the field at fault when there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) message: String,
    pub(crate) param: Option<Cow<'static, str>>,
}

impl Fault {
    fn body(problem: impl fmt::Display) -> Self {
        Self { message: format!("The request body {problem}."), param: None }
    }

    pub(crate) fn field(name: impl Into<Cow<'static, str>>, problem: impl fmt::Display) -> Self {
        let name = name.into();
        Self { message: format!("'{name}' {problem}."), param: Some(name) }
    }
}

impl Dialect {
    /// Every dialect beside its name, for the configuration's reader.
    pub(crate) fn all() -> Vec<(&'static str, Dialect)> {
        TABLE.iter().map(|spec| (spec.name, Dialect(spec))).collect()
    }

    pub(crate) fn paths(self) -> &'static [&'static str] {
        self.0.paths
    }

    /// The method of its calls; `None`: any.
    pub(crate) fn method(self) -> Option<&'static str> {
        self.0.method
    }

    /// The parameters of a query that go on to its servers.
    pub(crate) fn query(self) -> &'static [&'static str] {
        self.0.query
    }

    pub(crate) fn reads(self) -> Reads {
        self.0.reads
    }

    /// Whether its servers read the model from the body.
    pub(crate) fn names_model(self) -> bool {
        self.0.paths.iter().all(|path| !path.contains("{model}"))
    }

    /// Whether its bodies name a model where nobody looks: forms do.
    pub(crate) fn names_model_unread(self) -> bool {
        self == Dialect(&openai::media::UPLOADS)
    }

    /// How its errors and rate headers are written.
    pub(crate) fn style(self) -> Style {
        self.0.style
    }

    /// How its replies tell what was used.
    pub(crate) fn reply(self) -> Shape {
        self.0.reply
    }
}

impl PartialEq for Dialect {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for Dialect {}

impl fmt::Debug for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dialect_has_a_name_and_well_known_paths_of_its_own() {
        let mut names: Vec<&str> = TABLE.iter().map(|spec| spec.name).collect();
        let mut paths: Vec<&str> = TABLE.iter().flat_map(|spec| spec.paths).copied().collect();
        let (named, listed) = (names.len(), paths.len());
        names.sort_unstable();
        names.dedup();
        paths.sort_unstable();
        paths.dedup();
        assert_eq!((names.len(), paths.len()), (named, listed));
    }
}
