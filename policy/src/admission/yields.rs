//! What one tenant's calls usually yield, by model.

use super::tenants::ModelIndex;
use crate::estimate::Yield;
use crate::units::Tokens;

/// The first model is kept in place, for most tenants use no other; further ones are few, and looked through faster than
/// searched.
#[derive(Debug, Default)]
pub(super) struct Yields {
    first: Option<(ModelIndex, Yield)>,
    others: Option<Box<Vec<(ModelIndex, Yield)>>>,
}

impl Yields {
    /// What to reserve for the output of one sequence.
    pub(super) fn reservation(&self, model: ModelIndex, max_tokens: Option<Tokens>, left: Tokens) -> Tokens {
        let mut known = self.first.iter().chain(self.others.iter().flat_map(|others| others.iter()));
        let known = known.find(|(known, _)| *known == model);
        known.map_or_else(Yield::default, |(_, known)| *known).reservation(max_tokens, left)
    }

    /// Learns from a call that ended by itself. `output` is per sequence.
    pub(super) fn learn(&mut self, model: ModelIndex, output: Tokens) {
        let (first, known) = self.first.get_or_insert((model, Yield::default()));
        if *first == model {
            return known.learn(output);
        }
        let others = self.others.get_or_insert_default();
        match others.iter_mut().find(|(known, _)| *known == model) {
            Some((_, known)) => known.learn(output),
            None => {
                let mut fresh = Yield::default();
                fresh.learn(output);
                others.push((model, fresh));
            }
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
