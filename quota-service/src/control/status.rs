//! What operators are shown of it.

use super::{Control, Reloads, effective};
use serde::Serialize;
use serde_json::{Value, json};
use sluice_policy::schedule::{Change, Settings as Effective};

#[derive(Clone, Debug, Serialize)]
pub struct OverlayStatus {
    pub version: u64,
    /// `null`: there is none.
    pub overlay: Option<Change>,
    /// What holds now, everything applied.
    pub effective: Effective,
}

#[derive(Clone, Debug, Serialize)]
pub struct TimeRulesStatus {
    pub now_unix_ms: i64,
    pub rules: Vec<RuleStatus>,
    pub next_change_unix_ms: Option<i64>,
    pub effective: Effective,
}

#[derive(Clone, Debug, Serialize)]
pub struct RuleStatus {
    name: String,
    window: String,
    active: bool,
    sets: Change,
}

impl Control {
    pub fn overlay_status(&self) -> OverlayStatus {
        let overlay = self.lock().overlay.clone();
        let effective = self.engine.read(|core| effective(core.config(), &overlay, self.clock.now()));
        OverlayStatus { version: overlay.version, overlay: overlay.change, effective }
    }

    pub fn time_rules_status(&self) -> TimeRulesStatus {
        let now = self.clock.now();
        let overlay = self.lock().overlay.clone();
        self.engine.read(|core| {
            let rules = core.config().time_rules.iter().map(|rule| RuleStatus {
                name: rule.name.clone(),
                window: rule.window.to_string(),
                active: rule.window.contains(now),
                sets: rule.change.clone(),
            });
            TimeRulesStatus {
                now_unix_ms: now.0,
                rules: rules.collect(),
                next_change_unix_ms: core.config().time_rules.next_change(now).map(|at| at.0),
                effective: effective(core.config(), &overlay, now),
            }
        })
    }

    /// Adaptive weights with their reasons; `null` while they are off.
    pub fn adaptive_status(&self) -> Value {
        let state = self.lock();
        let Some(adapted) = state.adapting.adapted() else { return Value::Null };
        let tenants = adapted.iter().map(|(id, adapted)| {
            let reason = match adapted.used.cmp(&adapted.share) {
                std::cmp::Ordering::Less => "used less than its share",
                std::cmp::Ordering::Equal => "used its share",
                std::cmp::Ordering::Greater => "used more than its share",
            };
            json!({
                "tenant": id.as_str(),
                "percent_of_configured_weight": adapted.percent,
                "used_tokens": adapted.used,
                "share_tokens": adapted.share,
                "reason": reason,
            })
        });
        tenants.collect()
    }

    /// The names of the rules that hold now.
    pub fn active_rules(&self) -> Vec<String> {
        let now = self.clock.now();
        self.engine.read(|core| core.config().time_rules.active(now).map(|rule| rule.name.clone()).collect())
    }

    pub fn reloads(&self) -> Reloads {
        self.lock().reloads
    }
}
