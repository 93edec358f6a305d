//! Models: what all tenants' calls to each have used.

use super::counter;
use super::gen_ai::{GenAi, OfModel as Histograms};
use super::resolved::Resolved;
use prometheus::{IntCounter, IntCounterVec, Registry};
use sluice_policy::admission::Settled;
use sluice_policy::config::Price;
use sluice_policy::units::ModelName;
use sluice_policy::wire::{Outcome, Timing, Usage, UsageSource};
use std::sync::OnceLock;

pub(super) struct ByModel {
    tokens: IntCounterVec,
    cost: IntCounterVec,
    fixed: IntCounterVec,
    gen_ai: GenAi,
    resolved: Resolved<ModelName, OfModel>,
}

#[derive(Default)]
struct OfModel {
    tokens: [OnceLock<IntCounter>; 4],
    histograms: Histograms,
}

/// The kinds of tokens, as their series are called.
pub(super) fn kinds(usage: &Usage) -> [(&'static str, u64); 4] {
    let Usage { input, output, cached, reasoning, .. } = usage;
    [("input", input.0), ("output", output.0), ("cached", cached.0), ("reasoning", reasoning.0)]
}

impl ByModel {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name, help, labels: &[&str]| counter(registry, name, help, labels);
        Ok(Self {
            tokens: counter(
                "sluice_model_tokens_total",
                "Tokens used, by all tenants; cached ones are part of the input, reasoning ones of the output.",
                &["model", "kind"],
            )?,
            cost: counter(
                "sluice_model_cost_micros_total",
                "What calls of all tenants cost by their models' prices, in millionths of a currency unit.",
                &["model"],
            )?,
            fixed: counter(
                "sluice_model_fixed_charges_total",
                "Charges of requests of all tenants that are not counted in tokens.",
                &["model"],
            )?,
            gen_ai: GenAi::new(registry)?,
            resolved: Resolved::default(),
        })
    }

    pub(super) fn settled(&self, settled: &Settled, price: Price, outcome: Outcome, timing: Option<Timing>) {
        let Settled { model, usage, .. } = settled;
        let of_model = self.resolved.of(model, OfModel::default);
        self.gen_ai.settled(&of_model.histograms, settled, outcome, timing);
        let cost = price.of(usage);
        if cost > 0 {
            self.cost.with_label_values(&[model.as_str()]).inc_by(cost);
        }
        if usage.source == UsageSource::Fixed {
            self.fixed.with_label_values(&[model.as_str()]).inc_by(usage.input.0);
            return;
        }
        for ((kind, tokens), series) in kinds(usage).into_iter().zip(&of_model.tokens) {
            series.get_or_init(|| self.tokens.with_label_values(&[model.as_str(), kind])).inc_by(tokens);
        }
    }
}
