//! What happens to the simulated service: calls, in order of arrival.
//!
//! As text a trace is JSON lines, one call a line; empty lines and lines that begin with `#` are passed over:
//!
//! ```json
//! {"at_ms": 0, "tenant": "dept-a", "model": "qwen", "level": 2, "input_tokens": 900, "output_tokens": 120,
//!  "max_tokens": 512, "service_ms": 2400, "cancel_after_ms": 30000}
//! ```
//!
//! (on one line). `level`, `max_tokens`, `cached_tokens`, `deadline_ms` and `cancel_after_ms` may be absent.

use crate::units::{Millis, Priority, TenantId, Tokens};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Three years: no trace is longer.
const MOST_AT_MS: u64 = 100_000_000_000;
const MOST_SERVICE_MS: u64 = 86_400_000;
const MOST_TOKENS: u64 = 1_000_000_000;
/// So many errors are shown; whoever has more has the wrong file.
const SHOWN_ERRORS: usize = 50;

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Since the beginning of the trace.
    pub at: Millis,
    /// Its place in [`Trace::tenants`].
    pub tenant: usize,
    /// Its place in [`Trace::models`].
    pub model: usize,
    /// The client's `x-priority`, which may only lower.
    pub level: Option<Priority>,
    pub input: Tokens,
    pub output: Tokens,
    /// The part of `input` that the model server has in its prefix cache.
    pub cached: Tokens,
    pub max_tokens: Option<Tokens>,
    /// How long it holds its slot.
    pub service: Millis,
    /// How long after its arrival the client leaves, if the reply has not ended by then.
    pub cancel_after: Option<Millis>,
    pub deadline: Option<Millis>,
}

/// Invariants: arrivals are in order of time, and name tenants and models of the tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    pub(super) tenants: Vec<TenantId>,
    pub(super) models: Vec<String>,
    pub(super) arrivals: Vec<Arrival>,
}

/// One line that is no call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct TraceError {
    /// From 1.
    pub line: usize,
    pub problem: String,
}

/// All that is wrong with a trace, in its order. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceErrors(pub Vec<TraceError>);

impl fmt::Display for TraceErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().take(SHOWN_ERRORS).enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{error}")?;
        }
        let more = self.0.len().saturating_sub(SHOWN_ERRORS);
        if more > 0 { write!(f, "\nand {more} more") } else { Ok(()) }
    }
}

impl std::error::Error for TraceErrors {}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    at_ms: u64,
    tenant: &'a str,
    model: &'a str,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    level: Option<Priority>,
    input_tokens: u64,
    output_tokens: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    cached_tokens: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u64>,
    service_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cancel_after_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deadline_ms: Option<u64>,
}

impl Trace {
    /// Reads JSON lines. Arrivals need not be in order; those of one millisecond keep the order of their lines.
    ///
    /// # Errors
    /// Every line that is no call, with its number.
    pub fn parse(text: &str) -> Result<Self, TraceErrors> {
        let (mut trace, mut errors) = (Builder::default(), Vec::new());
        for (number, line) in (1..).zip(text.lines()) {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            match read(line) {
                Ok(call) => trace.add(&call),
                Err(problem) => errors.push(TraceError { line: number, problem }),
            }
        }
        if trace.trace.arrivals.is_empty() && errors.is_empty() {
            errors.push(TraceError { line: 1, problem: "the trace holds no call".to_owned() });
        }
        if errors.is_empty() { Ok(trace.finish()) } else { Err(TraceErrors(errors)) }
    }

    /// A trace of these calls; whatever their order, and whatever the tables hold beside.
    #[must_use]
    pub fn new(tenants: Vec<TenantId>, models: Vec<String>, mut arrivals: Vec<Arrival>) -> Self {
        arrivals.retain(|call| call.tenant < tenants.len() && call.model < models.len());
        arrivals.sort_by_key(|call| call.at);
        Self { tenants, models, arrivals }
    }

    #[must_use]
    pub fn arrivals(&self) -> &[Arrival] {
        &self.arrivals
    }

    /// The trace as [`Trace::parse`] reads it.
    #[must_use]
    pub fn to_json_lines(&self) -> String {
        let mut text = String::new();
        for call in &self.arrivals {
            let Some(line) = self.line(call).and_then(|line| serde_json::to_string(&line).ok()) else { continue };
            text.push_str(&line);
            text.push('\n');
        }
        text
    }

    fn line(&self, call: &Arrival) -> Option<Line<'_>> {
        Some(Line {
            at_ms: call.at.0,
            tenant: self.tenants.get(call.tenant)?.as_str(),
            model: self.models.get(call.model)?,
            level: call.level,
            input_tokens: call.input.0,
            output_tokens: call.output.0,
            cached_tokens: call.cached.0,
            max_tokens: call.max_tokens.map(|tokens| tokens.0),
            service_ms: call.service.0,
            cancel_after_ms: call.cancel_after.map(|span| span.0),
            deadline_ms: call.deadline.map(|span| span.0),
        })
    }
}

fn read(text: &str) -> Result<Line<'_>, String> {
    // Every line is a document of its own to the parser; its number would only confuse.
    let plain = |error: serde_json::Error| error.to_string().replace(" at line 1 column ", " at column ");
    let line: Line<'_> = serde_json::from_str(text).map_err(plain)?;
    let bounds = [
        ("at_ms", Some(line.at_ms), MOST_AT_MS),
        ("input_tokens", Some(line.input_tokens), MOST_TOKENS),
        ("output_tokens", Some(line.output_tokens), MOST_TOKENS),
        ("cached_tokens", Some(line.cached_tokens), line.input_tokens),
        ("max_tokens", line.max_tokens, MOST_TOKENS),
        ("service_ms", Some(line.service_ms), MOST_SERVICE_MS),
        ("cancel_after_ms", line.cancel_after_ms, MOST_AT_MS),
        ("deadline_ms", line.deadline_ms, MOST_AT_MS),
    ];
    match bounds.into_iter().find(|(_, value, most)| value.is_some_and(|value| value > *most)) {
        Some((name, value, most)) => Err(format!("{name} must be at most {most}, found {}", value.unwrap_or(0))),
        None => Ok(line),
    }
}

#[derive(Default)]
struct Builder {
    trace: Trace,
    tenants: BTreeMap<String, usize>,
    models: BTreeMap<String, usize>,
}

impl Builder {
    fn add(&mut self, line: &Line<'_>) {
        let tenant = place(&mut self.tenants, line.tenant, || self.trace.tenants.push(line.tenant.into()));
        let model = place(&mut self.models, line.model, || self.trace.models.push(line.model.to_owned()));
        self.trace.arrivals.push(Arrival {
            at: Millis(line.at_ms),
            tenant,
            model,
            level: line.level,
            input: Tokens(line.input_tokens),
            output: Tokens(line.output_tokens),
            cached: Tokens(line.cached_tokens),
            max_tokens: line.max_tokens.map(Tokens),
            service: Millis(line.service_ms),
            cancel_after: line.cancel_after_ms.map(Millis),
            deadline: line.deadline_ms.map(Millis),
        });
    }

    fn finish(self) -> Trace {
        let Trace { tenants, models, arrivals } = self.trace;
        Trace::new(tenants, models, arrivals)
    }
}

/// The index of a name; `add` is called for one that is new.
fn place(known: &mut BTreeMap<String, usize>, name: &str, add: impl FnOnce()) -> usize {
    if let Some(index) = known.get(name) {
        return *index;
    }
    add();
    known.insert(name.to_owned(), known.len());
    known.len() - 1
}

// Serde hands the field over by reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(tokens: &u64) -> bool {
    *tokens == 0
}
