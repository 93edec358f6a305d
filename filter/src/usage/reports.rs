//! What an upstream has reported of a stream so far: of the whole, or of one choice after the other.
//!
//! vLLM and SGLang, told to report with every chunk, tell in each what the choice in it has cost, and of several prompts
//! what that choice's prompt had. Only the event at the end, which has no choice, tells the sum. Other servers put the sum
//! beside a last choice: it is theirs where that choice has written what no report covers, because a server that reports
//! with every chunk leaves nothing uncovered.

use super::report::{Counts, Reported};
use super::written::Written;
use super::{Sequences, Shape};
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
pub(super) struct Reports {
    sequences: Sequences,
    whole: Reported,
    /// By index, what came after the last report of the whole.
    choices: BTreeMap<u32, Reported>,
    /// What was written and no report covers, by choice; of a single sequence under 0.
    unreported: BTreeMap<u32, Written>,
}

impl Reports {
    pub(super) fn of(sequences: Sequences) -> Self {
        Self { sequences, whole: Reported::default(), choices: BTreeMap::new(), unreported: BTreeMap::new() }
    }

    /// Takes a `usage` object over. `choice`: it came with this choice alone. Returns whether it covers what has been
    /// written up to and with its own event: one without output covers nothing.
    pub(super) fn take(&mut self, json: &str, shape: Shape, choice: Option<u32>) -> bool {
        let is_covered = |index: &u32| self.sequences.has(*index) && !self.unreported.contains_key(index);
        let covers = match choice.filter(is_covered) {
            Some(index) => return self.choices.entry(index).or_default().take(json, shape),
            None => self.whole.take(json, shape),
        };
        if covers {
            self.choices.clear();
            self.unreported.clear();
        }
        covers
    }

    /// An event without a report has written so much, of this choice alone or of all.
    pub(super) fn wrote(&mut self, written: Written, choice: Option<u32>) {
        if !written.is_empty() {
            let index = choice.filter(|index| self.sequences.has(*index)).unwrap_or_default();
            *self.unreported.entry(index).or_default() += written;
        }
    }

    /// What no report covers.
    pub(super) fn unreported(&self) -> Written {
        self.unreported.values().copied().sum()
    }

    /// The numbers, if they are all there and can all be true.
    pub(super) fn counts(&self, shape: Shape) -> Option<Counts> {
        if self.choices.is_empty() {
            return self.whole.counts(shape);
        }
        let mut sum = Counts::default();
        let mut prompts: BTreeMap<u32, Counts> = BTreeMap::new();
        for (index, reported) in &self.choices {
            let counts = reported.counts(shape)?;
            sum.output = sum.output.plus(counts.output);
            sum.reasoning = sum.reasoning.plus(counts.reasoning);
            let prompt = prompts.entry(self.sequences.prompt_of(*index)).or_default();
            prompt.input = prompt.input.max(counts.input);
            prompt.cached = prompt.cached.max(counts.cached);
        }
        for prompt in prompts.values() {
            sum.input = sum.input.plus(prompt.input);
            sum.cached = sum.cached.plus(prompt.cached);
        }
        // Reports never shrink, whatever the order in which they come.
        let whole = self.whole.counts(shape).unwrap_or_default();
        Some(Counts {
            input: sum.input.max(whole.input),
            output: sum.output.max(whole.output),
            cached: sum.cached.max(whole.cached),
            reasoning: sum.reasoning.max(whole.reasoning),
        })
    }

    pub(super) fn has_output(&self) -> bool {
        self.whole.has_output() || self.choices.values().any(Reported::has_output)
    }
}
