//! What is said of models beside their pools: other names, and what they cost.

use super::reader::Section;
use super::{Config, Model};
use crate::units::{ModelName, TenantId, Tokens};
use crate::wire::{AdmissionRequest, ChargeTo, Usage, UsageSource};
use std::collections::BTreeMap;

/// Money is counted in millionths of whatever currency the operator thinks in.
const MOST_MICROS: u64 = 1_000_000_000_000;
const TOKENS_PER_PRICE: u128 = 1_000_000;

/// What a model costs, in millionths of a currency unit. Nothing unless configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Price {
    /// For a million tokens of input that did not come from the cache.
    pub input: u64,
    /// For a million tokens of output, reasoning included.
    pub output: u64,
    /// For a million tokens of input that came from the server's prefix cache.
    pub cached: u64,
    /// For each call that is charged at all.
    pub request: u64,
}

impl Price {
    /// What this usage costs, in millionths of a currency unit, rounded up. A fixed charge is no tokens, so it costs
    /// the price of a request.
    #[must_use]
    pub fn of(self, usage: &Usage) -> u64 {
        let cached = usage.cached.0.min(usage.input.0);
        let tokens = match usage.source {
            UsageSource::None => return 0,
            UsageSource::Fixed => [(0, 0); 3],
            UsageSource::Reported | UsageSource::Estimated => {
                [(usage.input.0 - cached, self.input), (cached, self.cached), (usage.output.0, self.output)]
            }
        };
        let weighted: u128 = tokens.iter().map(|(tokens, price)| u128::from(*tokens) * u128::from(*price)).sum();
        let of_tokens = u64::try_from(weighted.div_ceil(TOKENS_PER_PRICE)).unwrap_or(u64::MAX);
        of_tokens.saturating_add(self.request)
    }
}

impl Price {
    /// What a call would cost that used so much, none of it from the cache.
    #[must_use]
    pub fn of_reservation(self, input: Tokens, output: Tokens) -> u64 {
        self.of(&Usage { source: UsageSource::Estimated, input, output, ..Usage::default() })
    }
}

/// What must be written into a call before it goes to the model server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// The server's name for the model, where the call says another.
    pub upstream_model: Option<ModelName>,
    /// The most that its tenant lets a sequence yield. Told whether or not the call asks for more: it also holds for later
    /// calls that are let pass without a question, and whoever writes it finds every bound that the call names.
    pub max_tokens: Option<Tokens>,
}

impl Config {
    /// Brings a call to what is decided about: the model under its own name, and no more output than the tenant may ask
    /// for. Returns what the call must say instead of what it says.
    pub fn resolve(&self, tenant: &TenantId, request: &mut AdmissionRequest) -> Rewrite {
        let ceiling = self.tenants.get(tenant).and_then(|tenant| tenant.output_ceiling);
        request.max_tokens = request.max_tokens.into_iter().chain(ceiling).min();
        Rewrite { upstream_model: self.resolve_model(&mut request.model), max_tokens: ceiling }
    }

    /// The same for a call that was not asked about, and is charged afterwards.
    pub fn resolve_charge(&self, charge: &mut ChargeTo) {
        self.resolve_model(&mut charge.model);
    }

    /// Every name that this tenant may use for a model, aliases too, in order.
    #[must_use]
    pub fn models_of(&self, tenant: &TenantId) -> Vec<ModelName> {
        let allowed = self.tenants.get(tenant).map(|tenant| &tenant.models);
        let may_use = |model: &ModelName| match allowed {
            Some(Some(models)) => models.contains(model),
            Some(None) => true,
            None => false,
        };
        let own = self.models.keys().filter(|name| may_use(name));
        let other = self.aliases.iter().filter(|(_, model)| may_use(model)).map(|(alias, _)| alias);
        let mut names: Vec<ModelName> = own.chain(other).cloned().collect();
        names.sort_unstable();
        names
    }

    /// Puts a model's own name in the place of an alias; returns the server's name where it differs from what was there.
    fn resolve_model(&self, named: &mut Option<String>) -> Option<ModelName> {
        let asked = ModelName::from(named.as_deref()?);
        let own = self.aliases.get(&asked).unwrap_or(&asked);
        let upstream = self.models.get(own)?.upstream.as_ref().unwrap_or(own);
        let differs = (*upstream != asked).then(|| upstream.clone());
        *named = Some(own.to_string());
        differs
    }
}

/// Reads `models`: completes those that pools serve, and returns the aliases.
pub(super) fn read(root: &Section<'_>, models: &mut BTreeMap<ModelName, Model>) -> BTreeMap<ModelName, ModelName> {
    let mut aliases = BTreeMap::new();
    root.each("models", |section| read_model(section, models, &mut aliases));
    aliases
}

fn read_model(
    section: &Section<'_>,
    models: &mut BTreeMap<ModelName, Model>,
    aliases: &mut BTreeMap<ModelName, ModelName>,
) -> Option<()> {
    let name = section.required("name", section.model_name("name"));
    let upstream = section.model_name("upstream").map(ModelName::from);
    let price = read_price(&section.section("price"));
    let others = section.model_names("aliases");
    let name = ModelName::from(name?);
    for alias in others {
        if models.contains_key(&ModelName::from(alias)) {
            section.error("aliases", format!("{alias:?} is a model's own name already"));
        } else if aliases.insert(ModelName::from(alias), name.clone()).is_some() {
            section.error("aliases", format!("{alias:?} is an alias already"));
        }
    }
    match models.get_mut(&name) {
        Some(model) => {
            model.upstream = upstream.filter(|upstream| *upstream != name);
            model.price = price;
        }
        None => section.error("name", format!("no pool serves the model {:?}", name.as_str())),
    }
    Some(())
}

fn read_price(section: &Section<'_>) -> Price {
    let micros = |name| section.integer(name, 0..=MOST_MICROS).unwrap_or(0);
    let price = Price {
        input: micros("input_micros_per_million"),
        output: micros("output_micros_per_million"),
        cached: section
            .integer("cached_micros_per_million", 0..=MOST_MICROS)
            .unwrap_or(micros("input_micros_per_million")),
        request: micros("request_micros"),
    };
    section.finish();
    price
}

#[cfg(test)]
mod tests;
