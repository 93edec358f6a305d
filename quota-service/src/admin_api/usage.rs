//! `GET /admin/usage`: what a tenant has used, hour by hour.

use crate::api_error::ApiError;
use crate::home::contract::UsageRecords;
use crate::home::records::{Counts, Hour};
use crate::usage::{ByHour, Usage};
use serde::{Deserialize, Serialize};
use sluice_policy::config::reader::is_name;
use sluice_policy::units::{ModelName, TenantId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Hours of one answer: a month, and each is one look at the ledger.
const MOST_HOURS: u32 = 31 * 24;

/// What answers are made of.
#[derive(Clone)]
pub struct UsageReports {
    pub usage: Arc<Usage>,
    pub home: Arc<dyn UsageRecords>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Question {
    tenant: String,
    from: Option<String>,
    to: Option<String>,
}

/// The hours from the first to the last, both included; those without a call are left out.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Report {
    tenant: TenantId,
    from: Hour,
    to: Hour,
    total: Counts,
    models: BTreeMap<ModelName, Counts>,
    hours: Vec<OfHour>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct OfHour {
    hour: Hour,
    models: BTreeMap<ModelName, Counts>,
}

impl UsageReports {
    pub(super) async fn answer(&self, question: &Question) -> Result<Report, ApiError> {
        let (tenant, from, to) = question.read(Hour::now()).map_err(ApiError::BadRequest)?;
        let by_hour = self.usage.read(&*self.home, &tenant, from..=to).await?;
        Ok(Report::of(tenant, (from, to), by_hour))
    }
}

impl Question {
    /// Without `to` up to this hour, without `from` the 24 hours before.
    fn read(&self, now: Hour) -> Result<(TenantId, Hour, Hour), String> {
        if !is_name(&self.tenant) {
            return Err(format!("tenant: is not the name of a tenant: {:?}", self.tenant));
        }
        let hour = |name: &str, text: &Option<String>| {
            let hour = text.as_deref().map(str::parse::<Hour>).transpose();
            hour.map_err(|error| format!("{name}: {error}"))
        };
        let to = hour("to", &self.to)?.unwrap_or(now);
        let from = hour("from", &self.from)?.unwrap_or(to.before(23));
        if from > to {
            return Err(format!("from: {from} is later than to, {to}"));
        }
        if to.since(from) >= MOST_HOURS {
            return Err(format!("from: {from} to {to} is more than the {MOST_HOURS} hours of one answer"));
        }
        Ok((self.tenant.as_str().into(), from, to))
    }
}

impl Report {
    fn of(tenant: TenantId, (from, to): (Hour, Hour), by_hour: ByHour) -> Self {
        let (mut total, mut models) = (Counts::default(), BTreeMap::<ModelName, Counts>::new());
        for (model, counts) in by_hour.values().flatten() {
            total.add(counts);
            models.entry(model.clone()).or_default().add(counts);
        }
        let hours = by_hour.into_iter().map(|(hour, models)| OfHour { hour, models }).collect();
        Self { tenant, from, to, total, models, hours }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(tenant: &str, from: Option<&str>, to: Option<&str>) -> Result<(TenantId, Hour, Hour), String> {
        let (from, to) = (from.map(str::to_owned), to.map(str::to_owned));
        Question { tenant: tenant.to_owned(), from, to }.read("2026013114".parse().unwrap())
    }

    #[test]
    fn without_hours_it_is_the_last_day() {
        let (tenant, from, to) = asked("a", None, None).unwrap();
        assert_eq!(
            (tenant.as_str(), from.to_string(), to.to_string()),
            ("a", "2026013015".into(), "2026013114".into())
        );
    }

    #[test]
    fn a_question_that_has_no_answer_says_which_part_of_it() {
        for (question, part) in [
            (asked("a:b", None, None), "tenant: is not"),
            (asked("a", Some("yesterday"), None), "from: must be an hour in UTC"),
            (asked("a", None, Some("2026013199")), "to: must be an hour in UTC"),
            (asked("a", Some("2026013115"), None), "is later than to"),
            (asked("a", Some("2025123014"), None), "is more than the 744 hours"),
        ] {
            let problem = question.unwrap_err();
            assert!(problem.contains(part), "{problem}");
        }
        assert!(asked("a", Some("2025123115"), None).is_ok());
    }

    #[test]
    fn models_and_hours_are_added_up() {
        let calls = |requests| Counts { requests, ..Counts::default() };
        let hour = |models: &[(&str, u64)]| models.iter().map(|(name, n)| ((*name).into(), calls(*n))).collect();
        let by_hour = [(Hour::numbered(1), hour(&[("m", 2), ("n", 3)])), (Hour::numbered(2), hour(&[("m", 5)]))];
        let report = Report::of("a".into(), (Hour::numbered(0), Hour::numbered(9)), by_hour.into());
        assert_eq!(report.total.requests, 10);
        assert_eq!(report.models[&ModelName::from("m")].requests, 7);
        assert_eq!(report.hours.len(), 2);
    }
}
