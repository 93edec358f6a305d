//! OpenTelemetry's GenAI metrics in Prometheus' spelling, with the buckets that its conventions advise.
//!
//! Times are the upstream's: from the moment at which a call left for it, so without the time in the queue. They are
//! measured on replies that succeed. By model and never by tenant: a histogram of each of a thousand tenants is a page of
//! megabytes.

use super::register;
use prometheus::{Histogram, HistogramOpts, HistogramVec, Registry};
use sluice_policy::admission::Settled;
use sluice_policy::wire::{Outcome, Timing, UsageSource};
use std::sync::OnceLock;

const TOKEN_BUCKETS: [f64; 14] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];
const DURATION_BUCKETS_S: [f64; 14] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
const FIRST_TOKEN_BUCKETS_S: [f64; 16] =
    [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
const PER_TOKEN_BUCKETS_S: [f64; 13] = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];

pub(super) struct GenAi {
    token_usage: HistogramVec,
    request_duration: HistogramVec,
    time_to_first_token: HistogramVec,
    time_per_output_token: HistogramVec,
}

/// The series of one model, made when they are first observed.
#[derive(Default)]
pub(super) struct OfModel {
    token_usage: [OnceLock<Histogram>; 2],
    request_duration: OnceLock<Histogram>,
    time_to_first_token: OnceLock<Histogram>,
    time_per_output_token: OnceLock<Histogram>,
}

impl GenAi {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let histogram = |name: &str, help: &str, buckets: &[f64], labels: &[&str]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            register(registry, HistogramVec::new(options, labels)?)
        };
        let labels = &["gen_ai_request_model"];
        Ok(Self {
            token_usage: histogram(
                "gen_ai_client_token_usage",
                "Tokens of one call, by type.",
                &TOKEN_BUCKETS,
                &["gen_ai_request_model", "gen_ai_token_type"],
            )?,
            request_duration: histogram(
                "gen_ai_server_request_duration_seconds",
                "From the moment a call left for the model server to the end of its reply.",
                &DURATION_BUCKETS_S,
                labels,
            )?,
            time_to_first_token: histogram(
                "gen_ai_server_time_to_first_token_seconds",
                "From the moment a call left for the model server to its first output, of streams.",
                &FIRST_TOKEN_BUCKETS_S,
                labels,
            )?,
            time_per_output_token: histogram(
                "gen_ai_server_time_per_output_token_seconds",
                "Between the tokens after the first, of streams.",
                &PER_TOKEN_BUCKETS_S,
                labels,
            )?,
        })
    }

    pub(super) fn settled(&self, of: &OfModel, settled: &Settled, outcome: Outcome, timing: Option<Timing>) {
        let (model, usage) = (settled.model.as_str(), settled.usage);
        if matches!(usage.source, UsageSource::Reported | UsageSource::Estimated) {
            for ((kind, tokens), series) in
                [("input", usage.input), ("output", usage.output)].iter().zip(&of.token_usage)
            {
                let series = series.get_or_init(|| self.token_usage.with_label_values(&[model, kind]));
                series.observe(as_f64(tokens.0));
            }
        }
        let (Some(timing), Outcome::Completed) = (timing, outcome) else { return };
        let observe = |series: &OnceLock<Histogram>, all: &HistogramVec, value: f64| {
            series.get_or_init(|| all.with_label_values(&[model])).observe(value);
        };
        observe(&of.request_duration, &self.request_duration, seconds(timing.duration_ms.0));
        if timing.streamed {
            observe(&of.time_to_first_token, &self.time_to_first_token, seconds(timing.first_token_ms.0));
            if let Some(gaps @ 1..) = usage.output.0.checked_sub(1) {
                let span = seconds(timing.duration_ms.since(timing.first_token_ms).0);
                observe(&of.time_per_output_token, &self.time_per_output_token, span / as_f64(gaps));
            }
        }
    }
}

fn seconds(ms: u64) -> f64 {
    as_f64(ms) / 1_000.0
}

/// Exact up to 2⁵³, far beyond what any call uses.
#[allow(clippy::cast_precision_loss)]
fn as_f64(number: u64) -> f64 {
    number as f64
}
