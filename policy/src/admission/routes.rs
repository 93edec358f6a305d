//! Where calls go: from the name of a model, or of a pool, to everything a decision needs, in one look.

use super::live::PoolIndex;
use super::pools::Pools;
use super::tenants::{ModelIndex, Tenants};
use crate::config::{ChargeWeights, Config, Price};
use crate::units::{ModelName, PoolName};
use rustc_hash::FxHashMap;

#[derive(Clone, Copy, Debug)]
pub(super) struct Route {
    pub(super) pool: PoolIndex,
    pub(super) model: ModelIndex,
    pub(super) charge: ChargeWeights,
}

/// What the configuration serves now; pools and models that a reload took away are not in it.
#[derive(Debug, Default)]
pub(super) struct Routes {
    by_model: FxHashMap<Box<str>, Route>,
    /// For calls that name no model: they are booked under the pool's name.
    by_pool: FxHashMap<PoolName, Route>,
    /// Of the models that cost something.
    prices: FxHashMap<ModelIndex, Price>,
}

impl Routes {
    pub(super) fn new(config: &Config, pools: &Pools, tenants: &mut Tenants) -> Self {
        let mut routes = Self::default();
        for (name, model) in &config.models {
            if let Some(pool) = pools.index(&model.pool) {
                let route = Route { pool, model: tenants.model_index(name), charge: model.charge };
                routes.by_model.insert(name.as_str().into(), route);
                if model.price != Price::default() {
                    routes.prices.insert(route.model, model.price);
                }
            }
        }
        for name in config.pools.keys() {
            if let Some(pool) = pools.index(name) {
                let booked = ModelName::from(name.as_str());
                let charge = config.models.get(&booked).map(|model| model.charge).unwrap_or_default();
                routes.by_pool.insert(name.clone(), Route { pool, model: tenants.model_index(&booked), charge });
            }
        }
        routes
    }

    pub(super) fn to_model(&self, name: &str) -> Option<Route> {
        self.by_model.get(name).copied()
    }

    pub(super) fn price(&self, model: ModelIndex) -> Price {
        self.prices.get(&model).copied().unwrap_or_default()
    }

    pub(super) fn to_pool(&self, name: &PoolName) -> Option<Route> {
        self.by_pool.get(name).copied()
    }
}
