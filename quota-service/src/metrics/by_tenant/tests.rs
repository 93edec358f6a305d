use super::*;
use proptest::prelude::*;
use sluice_policy::units::Tokens;
use sluice_policy::wire::Usage;
use std::collections::BTreeSet;
use std::time::Duration;

const MIB: usize = 1 << 20;

fn settled(tenant: &str) -> Settled {
    let (input, output) = (Tokens(1_234_567), Tokens(7_654_321));
    let usage = Usage { source: UsageSource::Reported, input, output, ..Usage::default() };
    Settled { tenant: tenant.into(), pool: "pool".into(), model: "model".into(), usage }
}

fn page(by_tenant: &ByTenant) -> String {
    let mut page = String::new();
    by_tenant.write(&mut page);
    page
}

/// Every series and its number.
fn series(page: &str) -> BTreeMap<String, u64> {
    let samples = page.lines().filter(|line| !line.starts_with('#'));
    samples.map(|line| line.rsplit_once(' ').unwrap()).map(|(name, n)| (name.to_owned(), n.parse().unwrap())).collect()
}

fn tenants(page: &str) -> BTreeSet<String> {
    let label = |line: &str| Some(line.split_once("tenant=\"")?.1.split_once('"')?.0.to_owned());
    page.lines().filter_map(label).collect()
}

#[test]
fn a_page_of_a_hundred_thousand_tenants_names_a_thousand_and_is_smaller_than_a_mebibyte() {
    let begun = Instant::now();
    let by_tenant = ByTenant::new(false, begun);
    by_tenant.set_tenants(100_000);
    let price = Price { input: 1_000_000, ..Price::default() };
    for round in 0..4 {
        let now = begun + Duration::from_secs(20 * round);
        for number in 0..100_000 {
            let tenant = format!("department-{number:06}");
            let id = TenantId::from(tenant.as_str());
            let reasons = [None, Some(Reason::QueueFull), Some(Reason::TenantRequestsPerMinute)];
            reasons.into_iter().for_each(|reason| by_tenant.decided(Some(&id), Some(&"pool".into()), reason, now));
            by_tenant.settled(&settled(&tenant), price, now);
        }
    }
    let page = page(&by_tenant);
    assert_eq!(tenants(&page).len(), MOST_NAMED + 1, "a thousand, and the others");
    assert!(page.len() < MIB, "{} bytes", page.len());
    let decided: u64 = series(&page).iter().filter(|(name, _)| name.starts_with("sluice_adm")).map(|(_, n)| n).sum();
    assert_eq!(decided, 4 * 3 * 100_000, "nothing is counted twice, and nothing left out");
}

#[test]
fn a_tenant_is_told_apart_by_pool_and_model_only_where_the_configuration_asks_for_it() {
    for by_model in [false, true] {
        let now = Instant::now();
        let by_tenant = ByTenant::new(by_model, now);
        by_tenant.set_tenants(1);
        by_tenant.decided(Some(&"a".into()), Some(&"pool".into()), None, now);
        by_tenant.settled(&settled("a"), Price::default(), now);
        by_tenant.decided(None, None, Some(Reason::UnknownKey), now);
        let page = page(&by_tenant);
        assert_eq!(page.contains("pool=\"pool\""), by_model, "{page}");
        assert_eq!(page.contains("model=\"model\""), by_model, "{page}");
        let own =
            if by_model { "{tenant=\"a\",model=\"model\",kind=\"output\"}" } else { "{tenant=\"a\",kind=\"output\"}" };
        assert!(page.contains(&format!("sluice_tokens_total{own} 7654321\n")), "{page}");
        assert!(page.contains("tenant=\"\",decision=\"rejected\",reason=\"unknown_key\"} 1\n"), "{page}");
    }
}

proptest! {
    #[test]
    fn no_counter_ever_decreases_and_none_forgets_a_call_while_names_come_and_go(
        steps in prop::collection::vec((0..3_000_u64, 0..30_u8, 1..4_u32, any::<bool>()), 1..150),
    ) {
        let mut now = Instant::now();
        let by_tenant = ByTenant { roll: Mutex::new(Roll::new(5, now)), by_model: false, strangers: Counted::default() };
        by_tenant.set_tenants(30);
        let mut seen = BTreeMap::new();
        for (pause_s, tenant, calls, is_refused) in steps {
            now += Duration::from_secs(pause_s);
            let tenant = format!("t-{tenant}");
            for _ in 0..calls {
                let reason = is_refused.then_some(Reason::QueueFull);
                by_tenant.decided(Some(&tenant.as_str().into()), None, reason, now);
                by_tenant.settled(&settled(&tenant), Price::default(), now);
            }
            let page = page(&by_tenant);
            prop_assert!(tenants(&page).len() <= 6, "{}", page);
            for (name, number) in series(&page) {
                let before = seen.insert(name.clone(), number).unwrap_or(0);
                prop_assert!(before <= number, "{} fell from {} to {}", name, before, number);
            }
        }
    }
}
