//! Why one call was admitted, queued or refused, as a person reads it.

use serde::Serialize;
use serde_json::{Value, json};
use sluice_policy::admission::{Explanation, Fate, Place};
use sluice_policy::config::Config;
use sluice_policy::queue::GroupIndex;
use sluice_policy::units::{Millis, Tokens};

#[derive(Serialize)]
pub(super) struct Explained {
    id: String,
    /// One sentence.
    why: String,
    /// `null`: nobody knows the key.
    tenant: Option<String>,
    model: Option<String>,
    pool: Option<String>,
    priority: Option<u8>,
    reserved_tokens: Tokens,
    charge: Tokens,
    arrived_ms_ago: Millis,
    /// What stood before it, and the counters that decided; `null` for a call that did not come to the queue.
    queue: Option<Value>,
    fate: Value,
}

impl Explained {
    pub(super) fn of(id: String, explanation: &Explanation, config: &Config, now: Millis) -> Self {
        let ago = |at: Millis| now.since(at);
        let fate = match &explanation.fate {
            Fate::Waiting => json!({"state": "waiting"}),
            Fate::Running { since } => json!({"state": "running", "since_ms_ago": ago(*since)}),
            Fate::Refused { at, reason, message, limit } => {
                let limit = limit.map(|limit| json!({"name": limit.name.as_str(), "most": limit.most}));
                json!({"state": "refused", "reason": reason, "message": message, "limit": limit, "ms_ago": ago(*at)})
            }
            Fate::Ended { at, outcome, usage, slot_until } => {
                let orphan = slot_until.filter(|until| *until > now);
                let state = if orphan.is_some() { "orphaned" } else { "ended" };
                let free_in = orphan.map(|until| until.since(now));
                json!({
                    "state": state, "outcome": outcome, "usage": usage, "ms_ago": ago(*at), "slot_free_in_ms": free_in,
                })
            }
        };
        Self {
            id,
            why: why(explanation),
            tenant: explanation.tenant.as_ref().map(ToString::to_string),
            model: explanation.model.as_ref().map(ToString::to_string),
            pool: explanation.pool.as_ref().map(ToString::to_string),
            priority: explanation.level.map(u8::from),
            reserved_tokens: explanation.reserved,
            charge: explanation.charge,
            arrived_ms_ago: ago(explanation.arrived),
            queue: explanation.queued_at.as_ref().map(|place| queue(place, config)),
            fate,
        }
    }
}

fn why(explanation: &Explanation) -> String {
    match (&explanation.fate, &explanation.queued_at) {
        (Fate::Refused { message, .. }, _) => format!("refused: {message}"),
        (_, None) => "admitted at once: nobody waited, and there were a slot and tokens for it".to_owned(),
        (_, Some(place)) => format!(
            "queued at place {} because the pool was full; estimated wait then: {}",
            place.position, place.estimated_wait
        ),
    }
}

fn queue(place: &Place, config: &Config) -> Value {
    let name = |group: GroupIndex| {
        config.groups.iter().find(|(_, index)| **index == group).map_or("others", |(name, _)| name.as_str())
    };
    let branches = place.branches.iter().map(|branch| {
        json!({
            "group": name(branch.group),
            "priority": u8::from(branch.level),
            "waiting": branch.waiting,
            "tenants": branch.flows,
            // JSON numbers are not safe beyond 2^53.
            "group_counter": branch.group_counter.to_string(),
            "level_counter": branch.level_counter.to_string(),
        })
    });
    json!({
        "position": place.position,
        "estimated_wait_ms": place.estimated_wait,
        "next_is": "P0, then the branch with the smallest group counter, then the smallest level counter",
        "branches_then": branches.collect::<Vec<_>>(),
    })
}
