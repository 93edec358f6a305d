use super::*;
use crate::config::reader::read_document;
use crate::schedule::PoolSettings;
use serde_json::json;

fn read(rules: &Value) -> Result<TimeRules, Vec<String>> {
    let pool = |tokens_per_s| PoolSettings { concurrent: 8, tokens_per_s, burst_tokens: None, shares: BTreeMap::new() };
    let pools = [("smol".into(), pool(Some(4_000))), ("big".into(), pool(None))];
    let base = Settings { weights: [1; 10], pools: pools.into() };
    let groups = ["external", "internal"].map(str::to_owned).into();
    read_document(&json!({"time_rules": rules}), |root| Some(TimeRules::read(root, &base, &groups)))
        .map_err(|errors| errors.0.iter().map(ToString::to_string).collect())
}

fn problems(rules: &Value) -> Vec<String> {
    read(rules).err().unwrap_or_default()
}

/// A rule that is right but for what `fields` replaces; null removes a field.
fn rule(fields: &Value) -> Value {
    let mut rule = json!({
        "name": "night", "zone": "Asia/Shanghai", "from": "18:00", "to": "08:00",
        "set": {"weights": [1, 1, 1, 1, 1, 1, 1, 1, 1, 2]},
    });
    for (name, value) in fields.as_object().unwrap() {
        rule[name] = value.clone();
    }
    rule
}

#[test]
fn a_rule_reads_as_it_is_written() {
    let rules = read(&json!([{
        "name": "night", "zone": "Asia/Shanghai", "days": ["mon", "fri"], "from": "18:00", "to": "08:00",
        "set": {
            "weights": [16, 16, 16, 16, 16, 64, 32, 32, 16, 8],
            "pools": [{
                "name": "smol", "concurrent": 4, "tokens_per_s": 2000, "burst_tokens": 4000,
                "shares": {"internal": 20, "external": 80},
            }],
        },
    }]))
    .unwrap();
    let night = rules.iter().next().unwrap();
    assert_eq!(night.window.to_string(), "mon, fri 18:00–08:00 Asia/Shanghai");
    assert!(!night.overrides);
    assert_eq!(night.change.weights, Some([16, 16, 16, 16, 16, 64, 32, 32, 16, 8]));
    let smol = &night.change.pools[&PoolName::from("smol")];
    assert_eq!((smol.concurrent, smol.tokens_per_s, smol.burst_tokens), (Some(4), Some(2_000), Some(4_000)));
    assert_eq!(smol.shares, [("internal".to_owned(), 20), ("external".to_owned(), 80)].into());
}

#[test]
fn no_rules_are_no_error() {
    assert_eq!(read(&Value::Null).unwrap(), TimeRules::default());
    assert_eq!(read(&json!([])).unwrap(), TimeRules::default());
}

#[test]
fn every_error_of_every_rule_is_reported_at_once() {
    let found = problems(&json!([
        {"name": "a", "zone": "Asia/Shangai", "days": ["mon", "someday"], "from": "8:00", "to": "24:00",
         "set": {"weights": [0, -1, 1, 1, 1, 1, 1, 1, null, 1.5]}, "form": 1},
        {"name": "a", "zone": "UTC", "days": [], "from": 1080, "to": "08:60", "set": {"pools": [
            {"name": "smal", "concurrent": 0},
            {"concurrent": 1},
            {"name": "smol", "shares": {"external": 0, "guests": 1}},
            {"name": "smol", "tokens_per_s": 1},
            {"name": "big", "burst_tokens": 10},
        ]}},
        {"set": {}},
    ]));
    let levels = "must be an integer from 1 to 1000000";
    assert_eq!(
        found,
        [
            "time_rules[0].zone: there is no time zone \"Asia/Shangai\"; write an IANA name such as Europe/Berlin",
            "time_rules[0].days: there is no day \"someday\"; days are mon, tue, wed, thu, fri, sat, sun",
            "time_rules[0].from: must be a time from 00:00 to 23:59, found \"8:00\"",
            "time_rules[0].to: 24:00 is not on the clock: write 00:00",
            &format!("time_rules[0].set.weights[0]: {levels}, found 0"),
            &format!("time_rules[0].set.weights[1]: {levels}, found -1"),
            &format!("time_rules[0].set.weights[8]: {levels}, found nothing, or what is not a number"),
            &format!("time_rules[0].set.weights[9]: {levels}, found 1.5"),
            "time_rules[0].form: is not a known field here; known are days, from, name, overrides, set, to, zone",
            "time_rules[1].days: must name a day; leave it out for every day",
            "time_rules[1].from: must be a time in quotes, from \"00:00\" to \"23:59\"",
            "time_rules[1].to: must be a time from 00:00 to 23:59, found \"08:60\"",
            "time_rules[1].set.pools[0].name: there is no pool smal; pools are big, smol",
            "time_rules[1].set.pools[0].concurrent: must be an integer from 1 to 1000000, found 0",
            "time_rules[1].set.pools[1].name: is required",
            &format!("time_rules[1].set.pools[2].shares.external: {levels}, found 0"),
            "time_rules[1].set.pools[2].shares.guests: there is no group \"guests\"; groups are external, internal",
            "time_rules[1].set.pools[3].name: the pool smol is listed twice",
            "time_rules[1].set.pools[4].burst_tokens: needs tokens_per_s beside it: the pool has none",
            "time_rules[1].name: the rule a is defined twice",
            "time_rules[2].name: is required",
            "time_rules[2].zone: is required",
            "time_rules[2].from: is required",
            "time_rules[2].to: is required",
            "time_rules[2].set: sets nothing: name weights or pools",
        ]
    );
}

#[test]
fn eleven_weights_are_refused() {
    let found = problems(&json!([rule(&json!({"set": {"weights": [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]}}))]));
    assert_eq!(found, ["time_rules[0].set.weights: must be 10 integers, for P0 to P9, found 11"]);
}

#[test]
fn a_rule_or_a_pool_that_sets_nothing_is_refused() {
    for nothing in [json!(null), json!({}), json!({"weights": null})] {
        let found = problems(&json!([rule(&json!({"set": nothing}))]));
        assert_eq!(found, ["time_rules[0].set: sets nothing: name weights or pools"], "{nothing}");
    }
    let found = problems(&json!([rule(&json!({"set": {"pools": []}}))]));
    assert_eq!(found, ["time_rules[0].set.pools: must name a pool, or be left out"]);
    let found = problems(&json!([rule(&json!({"set": {"pools": [{"name": "smol"}]}}))]));
    let expected =
        "time_rules[0].set.pools[0].name: sets nothing: name concurrent, tokens_per_s, burst_tokens or shares";
    assert_eq!(found, [expected]);
}

#[test]
fn a_placeholder_zone_is_unknown() {
    for zone in ["Etc/Unknown", "", "Local", "CET+1", "../UTC"] {
        assert_eq!(problems(&json!([rule(&json!({"zone": zone}))])).len(), 1, "{zone}");
    }
}

#[test]
fn overlapping_rules_that_disagree_are_refused_unless_the_later_one_overrides() {
    let weekend = json!({
        "name": "weekend", "days": ["sat", "sun"], "from": "00:00", "to": "00:00",
        "set": {"weights": [9, 1, 1, 1, 1, 1, 1, 1, 1, 1]},
    });
    assert_eq!(
        problems(&json!([rule(&json!({})), rule(&weekend)])),
        ["time_rules[1].overrides: night and weekend set weights differently and overlap (from sat 00:00 \
          Asia/Shanghai): change a window, or write true here and weekend wins while both are active"]
    );
    let mut meant = rule(&weekend);
    meant["overrides"] = json!(true);
    assert!(read(&json!([rule(&json!({})), meant])).is_ok());
    let same = rule(&json!({"name": "same"}));
    assert!(read(&json!([rule(&json!({})), same])).is_ok(), "both set the same weights");
    let day = rule(&json!({"name": "day", "from": "08:00", "to": "18:00", "set": weekend["set"]}));
    assert!(read(&json!([rule(&json!({})), day])).is_ok(), "they touch, but do not overlap");
}

#[test]
fn more_than_a_hundred_rules_are_refused() {
    let rules: Vec<Value> = (0..101).map(|index| rule(&json!({"name": format!("r{index}")}))).collect();
    assert_eq!(problems(&json!(rules)), ["time_rules: must be at most 100 rules, found 101"]);
}
