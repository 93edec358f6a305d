//! What one tenant's calls usually yield, by model.

use super::tenants::ModelIndex;
use crate::estimate::Yield;
use crate::units::Tokens;

/// A chain whose first link is in place, for most tenants use one model only.
#[derive(Debug, Default)]
pub(super) struct Yields {
    first: Option<(ModelIndex, Yield)>,
    others: Option<Box<Yields>>,
}

impl Yields {
    /// What to reserve for the output of one sequence.
    pub(super) fn reservation(&self, model: ModelIndex, max_tokens: Option<Tokens>, left: Tokens) -> Tokens {
        let mut known = std::iter::successors(Some(self), |link| link.others.as_deref()).filter_map(|link| link.first);
        let known = known.find(|(known, _)| *known == model);
        known.map_or_else(Yield::default, |(_, known)| known).reservation(max_tokens, left)
    }

    /// Learns from a call that ended by itself. `output` is per sequence.
    pub(super) fn learn(&mut self, model: ModelIndex, output: Tokens) {
        let (first, known) = self.first.get_or_insert((model, Yield::default()));
        if *first == model {
            known.learn(output);
        } else {
            self.others.get_or_insert_default().learn(model, output);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_model_has_its_own_yield_whichever_came_first() {
        let mut yields = Yields::default();
        let (tenants, reserved) = (&mut super::super::tenants::Tenants::default(), Some(Tokens(5_000)));
        let models: Vec<ModelIndex> = ["a", "b", "c"].map(|name| tenants.model_index(&name.into())).to_vec();
        for (model, output) in models.iter().zip([100, 200, 300]) {
            assert_eq!(yields.reservation(*model, reserved, Tokens(9_000)), Tokens(5_000));
            yields.learn(*model, Tokens(output));
        }
        for (model, output) in models.iter().zip([100, 200, 300]) {
            assert_eq!(yields.reservation(*model, reserved, Tokens(9_000)), Tokens(output));
        }
    }
}
