//! What is counted, and what its field in the ledger is called.

use serde::{Deserialize, Serialize};
use sluice_policy::config::Price;
use sluice_policy::units::{HolderId, ModelName};
use sluice_policy::wire;
use std::fmt;
use std::str::FromStr;

/// Calls of one tenant to one model, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub requests: u64,
    /// Tokens, those from the cache included.
    pub input: u64,
    pub cached: u64,
    /// Tokens, those of reasoning included.
    pub output: u64,
    pub reasoning: u64,
    /// Charges of requests that are not counted in tokens.
    pub fixed: u64,
    /// Millionths of a currency unit.
    pub cost_micros: u64,
    /// Of the requests, those whose tokens are an estimate.
    pub estimated: u64,
}

impl Counts {
    /// Of one call.
    pub(crate) fn of(usage: &wire::Usage, price: Price) -> Self {
        let is_fixed = usage.source == wire::UsageSource::Fixed;
        let tokens = |tokens: u64| if is_fixed { 0 } else { tokens };
        Self {
            requests: 1,
            input: tokens(usage.input.0),
            cached: tokens(usage.cached.0),
            output: tokens(usage.output.0),
            reasoning: tokens(usage.reasoning.0),
            fixed: if is_fixed { usage.input.0 } else { 0 },
            cost_micros: price.of(usage),
            estimated: u64::from(usage.source == wire::UsageSource::Estimated),
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        let Self { requests, input, cached, output, reasoning, fixed, cost_micros, estimated } = self;
        for (sum, more) in [
            (requests, other.requests),
            (input, other.input),
            (cached, other.cached),
            (output, other.output),
            (reasoning, other.reasoning),
            (fixed, other.fixed),
            (cost_micros, other.cost_micros),
            (estimated, other.estimated),
        ] {
            *sum = sum.saturating_add(more);
        }
    }
}

/// Whose counts these are: `HOLDER@INCARNATION/MODEL`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Field {
    pub holder: HolderId,
    pub incarnation: u64,
    pub model: ModelName,
}

/// Not the name of a field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form holder@incarnation/model")]
pub struct NotAField(String);

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}/{}", self.holder, self.incarnation, self.model)
    }
}

impl FromStr for Field {
    type Err = NotAField;

    fn from_str(text: &str) -> Result<Self, NotAField> {
        let parts = text.split_once('@').and_then(|(holder, rest)| {
            // A model's name may hold slashes too.
            let (incarnation, model) = rest.split_once('/')?;
            Some((holder, incarnation.parse().ok()?, model))
        });
        let (holder, incarnation, model) = parts.ok_or_else(|| NotAField(text.to_owned()))?;
        Ok(Self { holder: holder.into(), incarnation, model: model.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_policy::units::Tokens;

    #[test]
    fn a_field_is_written_as_it_is_read() {
        let text = "gate-0@1790000000000/meta/llama-3@v2";
        let field: Field = text.parse().unwrap();
        assert_eq!((field.incarnation, field.model.as_str()), (1_790_000_000_000, "meta/llama-3@v2"));
        assert_eq!(field.to_string(), text);
        assert!("gate-0/m".parse::<Field>().is_err());
    }

    #[test]
    fn a_fixed_charge_counts_no_tokens() {
        let usage = wire::Usage { source: wire::UsageSource::Fixed, input: Tokens(7), ..wire::Usage::default() };
        let counts = Counts::of(&usage, Price::default());
        assert_eq!(counts, Counts { requests: 1, fixed: 7, ..Counts::default() });
    }
}
