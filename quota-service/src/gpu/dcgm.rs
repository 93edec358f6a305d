//! What the samples of a DCGM exporter say about its devices.
//!
//! The names and units have changed over the releases, and all of them are in use:
//!
//! | | until 4.8 | from 4.9 |
//! |---|---|---|
//! | load of a whole GPU | `DCGM_FI_DEV_GPU_UTIL`, percent | `DCGM_FI_DEV_GPU_UTIL_RATIO`, 0 to 1 |
//! | load of its engines, also of a MIG instance | `DCGM_FI_PROF_GR_ENGINE_ACTIVE`, 0 to 1 | `DCGM_FI_PROF_GR_ENGINE_UTIL_RATIO` |
//! | temperature of the chip, Celsius | `DCGM_FI_DEV_GPU_TEMP` | `DCGM_FI_DEV_GPU_TEMP_CELSIUS` |
//!
//! A MIG instance has no `GPU_UTIL`; its engines' load is relative to the instance, and its temperature is the
//! chip's. (The help text of older exporters calls the engines' ratio a percentage. It is not.)

use super::exposition::{self, Sample};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Kubernetes names are at most 253 bytes, those in use far shorter. Longer values are cut.
const MAX_LABEL_BYTES: usize = 128;
/// A node has at most 16 GPUs of 7 instances, and time slicing shares each among a few dozen pods.
const MAX_ROWS: usize = 4_096;

/// DCGM writes "no value" as huge numbers (2^63 − 16 and up, and 2^47 for fractions), which these ranges exclude
/// together with NaN. The ratio may pass 1 by the error of its sampling.
const RATIO: RangeInclusive<f64> = 0.0..=1.02;
const PERCENT: RangeInclusive<f64> = 0.0..=100.0;
const CELSIUS: RangeInclusive<f64> = -50.0..=200.0;

/// Everything one reply of an exporter told.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Reading {
    pub rows: BTreeMap<RowKey, Row>,
    /// Lines that were no samples, and samples of a device that has no usable number.
    pub bad_lines: u64,
    /// Samples beyond the bound on rows.
    pub dropped: u64,
    /// Samples that measure nothing that is passed on, or have no value.
    pub other_samples: u64,
}

/// A device and who holds it. A GPU that pods share has a row for each of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RowKey {
    /// The index of the GPU on its node.
    pub gpu: u16,
    /// The id of the MIG instance.
    pub instance: Option<u16>,
    /// Empty where nobody holds the device, or where the exporter cannot know.
    pub namespace: String,
    pub pod: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Row {
    pub model: String,
    pub temperature_celsius: Option<f64>,
    load: Option<(Source, f64)>,
}

/// Where a load comes from, the best first: the whole GPU's figure wins over that of its engines, so that a
/// dashboard shows what `nvidia-smi` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Gpu,
    Engines,
}

enum Quantity {
    Load(Source, f64),
    Temperature(f64),
}

impl Row {
    /// From 0 to 100.
    pub(super) fn load_percent(&self) -> Option<f64> {
        self.load.map(|(_, percent)| percent)
    }

    /// The first figure of a source stays: some captures repeat whole families.
    fn note(&mut self, quantity: &Quantity) {
        match *quantity {
            Quantity::Load(source, percent) => {
                if self.load.is_none_or(|(known, _)| source < known) {
                    self.load = Some((source, percent));
                }
            }
            Quantity::Temperature(celsius) => {
                self.temperature_celsius.get_or_insert(celsius);
            }
        }
    }
}

pub(super) fn read(text: &[u8]) -> Reading {
    let mut reading = Reading::default();
    let (mut unplaced, mut other_samples) = (0, 0);
    let bad_lines = exposition::read(text, |sample| {
        let Some(quantity) = quantity(&sample) else {
            other_samples += 1;
            return;
        };
        let Some(key) = row_key(&sample) else {
            unplaced += 1;
            return;
        };
        if reading.rows.len() >= MAX_ROWS && !reading.rows.contains_key(&key) {
            reading.dropped += 1;
            return;
        }
        let row = reading.rows.entry(key).or_default();
        if row.model.is_empty() {
            row.model = tidy(sample.label("modelName"));
        }
        row.note(&quantity);
    });
    reading.bad_lines = bad_lines + unplaced;
    reading.other_samples = other_samples;
    reading
}

/// What the sample measures, if it is one of those we pass on and has a value at all.
fn quantity(sample: &Sample<'_>) -> Option<Quantity> {
    let within = |range: RangeInclusive<f64>| range.contains(&sample.value).then_some(sample.value);
    let percent = |ratio: f64| (ratio * 100.0).min(100.0);
    match sample.name {
        "DCGM_FI_DEV_GPU_UTIL" => within(PERCENT).map(|load| Quantity::Load(Source::Gpu, load)),
        "DCGM_FI_DEV_GPU_UTIL_RATIO" => within(RATIO).map(|load| Quantity::Load(Source::Gpu, percent(load))),
        "DCGM_FI_PROF_GR_ENGINE_ACTIVE" | "DCGM_FI_PROF_GR_ENGINE_UTIL_RATIO" => {
            within(RATIO).map(|load| Quantity::Load(Source::Engines, percent(load)))
        }
        "DCGM_FI_DEV_GPU_TEMP" | "DCGM_FI_DEV_GPU_TEMP_CELSIUS" => within(CELSIUS).map(Quantity::Temperature),
        _ => None,
    }
}

fn row_key(sample: &Sample<'_>) -> Option<RowKey> {
    let instance = match sample.label("GPU_I_ID") {
        "" => None,
        id => Some(id.parse().ok()?),
    };
    Some(RowKey {
        gpu: sample.label("gpu").parse().ok()?,
        instance,
        namespace: holder(sample, "exported_namespace", "namespace"),
        pod: holder(sample, "exported_pod", "pod"),
    })
}

/// Behind a Prometheus that does not honour labels, `namespace` and `pod` are the exporter's own, and those of the
/// device's holder are called `exported_…`.
fn holder(sample: &Sample<'_>, exported: &str, own: &str) -> String {
    match sample.label(exported) {
        "" => tidy(sample.label(own)),
        value => tidy(value),
    }
}

/// A label value fit to be passed on: no control characters, and short.
fn tidy(value: &str) -> String {
    let mut short = String::with_capacity(value.len().min(MAX_LABEL_BYTES));
    for letter in value.chars() {
        if short.len() + letter.len_utf8() > MAX_LABEL_BYTES {
            break;
        }
        short.push(if letter.is_control() { '_' } else { letter });
    }
    short
}

#[cfg(test)]
mod tests;
