use super::{Inspected, table};
use crate::ledger::stored::{StoredAccount, Unreadable};
use std::collections::BTreeMap;

/// The account of the worked examples in docs/LEDGER.md, with more about it.
const HASH: &[(&str, &str)] = &[
    ("v", "3"),
    ("run", "7ad694f75a99d5fcd6f8d9fbee0b5c1356b432bd"),
    ("version", "12 3 1790000000000"),
    ("capacity", "8"),
    ("policy", "hybrid"),
    ("levels", "[256,128,64,32,16,8,4,2,1,1]"),
    ("spent", "1100"),
    ("clock_offset", "-3600000"),
    ("frozen_until", "1795343450397"),
    ("movable", "1"),
    ("holders", "gate-0 gate-1 gate-2"),
    (
        "holder:gate-0",
        r#"{"incarnation":1790000000000,"seq":3,"granted":7,"zombies":0,"zombies_until":0,"renewed_at":1795343390297,"lease":2000,"longest":600000,"asserted":1,"left":0,"contended":1}"#,
    ),
    (
        "holder:gate-1",
        r#"{"incarnation":1790000000007,"seq":1,"granted":1,"zombies":0,"zombies_until":0,"renewed_at":1795343390292,"lease":2000,"longest":600000,"asserted":1,"left":0,"contended":0}"#,
    ),
    (
        "holder:gate-2",
        r#"{"incarnation":1790000000009,"seq":44,"granted":0,"zombies":2,"zombies_until":1795343980397,"renewed_at":1795343380297,"lease":2000,"longest":600000,"asserted":1,"left":0,"contended":0}"#,
    ),
    ("rows:gate-1", "1795343390292\n/1/chat 1 450 3 20\n/4/batch 1 2000 1 800"),
    ("rows:gate-2", "1795343380297\n/1/chat 1 20 1 0"),
    ("picks:gate-1", r#"{"/1/chat":{"slots":1,"weight":1,"head":450,"at":1795343390297}}"#),
    ("lent:gate-0", r#"{"tokens_per_minute":50}"#),
    ("lent:gate-1", r#"{"tokens_per_minute":450}"#),
    ("drawn:gate-0", r#"{"tokens_per_minute":1100}"#),
    ("zombies", r#"{"1795343395397":3}"#),
    (
        "meter:tokens_per_minute",
        r#"{"amount":60000,"window":60000,"burst":60000,"period":0,"level":58413,"fraction":7,"refilled_at":1795343390297}"#,
    ),
    (
        "meter:tokens_per_day",
        r#"{"amount":1000,"window":0,"burst":1000,"period":20261122,"level":-20,"fraction":0,"refilled_at":1795343000000}"#,
    ),
    ("virtual_time", "1126400"),
    ("group:", r#"{"counter":1587200,"time":6400}"#),
    ("level:/1", r#"{"counter":10000,"time":0}"#),
    ("counter:/1/chat", "460800"),
    ("of a later release", "!"),
];
/// By the server's clock, an hour ahead of the ledger's.
const SERVER: i64 = 1_795_343_390_397 + 3_600_000;

fn hash() -> BTreeMap<String, String> {
    HASH.iter().map(|(field, text)| ((*field).to_owned(), (*text).to_owned())).collect()
}

fn inspected() -> Inspected {
    Inspected::new("sluice:{pool:smol}".to_owned(), &StoredAccount::read(&hash()).unwrap(), SERVER)
}

#[test]
fn an_account_is_a_table_of_what_it_means_now() {
    let expected = "\
sluice:{pool:smol}
  slots: capacity 8, granted 8, zombies 5 (more than there are); frozen for 60 s, 1 may move
  terms: hybrid, file 12, overlay 3, since 1790000000000; spent 1100; the server's clock is set right by -60 min
  HOLDER    INCARNATION  SEQ  GRANTED      ZOMBIES  LEASE ENDS IN  ROWS  WAITING  PICKED
  gate-0  1790000000000    3        7            0          1.9 s     0        0       0  contended
  gate-1  1790000000007    1        1            0          1.8 s     2        4       1
  gate-2  1790000000009   44        0  2 for 9 min          ended     1        1       0  its rows are too old to compete
  ZOMBIES   SLOTS  FREE IN
  vanished      3      5 s
  ROW       HOLDER  WEIGHT  HEAD  WAITING  WAITED  PICKED
  /1/chat   gate-1       1   450        3  125 ms       1
  /4/batch  gate-1       1  2000        1  905 ms       0
  /1/chat   gate-2       1    20        1  10.1 s       0
  METER              LEVEL  LENT  BURST           RATE  FRACTION    PERIOD    REFILLED
  tokens_per_day       -20     0   1000           1000            20261122
  tokens_per_minute  58413   500  60000  60000 in 60 s   7/60000            100 ms ago
  COUNTER            VALUE  TIME BELOW
  group:           1587200        6400
  level:/1           10000           0
  counter:/1/chat   460800
";
    assert_eq!(table(&[inspected()]), expected);
}

#[test]
fn an_account_that_nothing_is_known_of_is_three_lines() {
    let bare = ["v", "version", "capacity", "policy"];
    let hash = hash().into_iter().filter(|(field, _)| bare.contains(&field.as_str())).collect();
    let inspected = Inspected::new("sluice:{tenant:acme}".to_owned(), &StoredAccount::read(&hash).unwrap(), SERVER);
    let printed = table(&[inspected]);
    assert_eq!(printed.lines().count(), 3, "{printed}");
}

#[test]
fn zombies_whose_time_is_over_count_no_more() {
    let later = Inspected::new("x".to_owned(), &StoredAccount::read(&hash()).unwrap(), SERVER + 600_000);
    assert_eq!((later.zombies, later.frozen_for_ms), (0, None));
    assert_eq!((later.holders[2].zombies_for_ms, later.gone[0].free_in_ms), (Some(-10_000), -595_000));
    let printed = table(&[later]);
    assert!(!printed.contains("vanished") && printed.contains("zombies 0\n"), "{printed}");
}

#[test]
fn nothing_found_is_said() {
    assert_eq!(table(&[]), "Redis holds no such account\n");
}

#[test]
fn as_json_all_of_it_has_a_name() {
    let json = serde_json::to_value(inspected()).unwrap();
    assert_eq!(json["account"], "sluice:{pool:smol}");
    assert_eq!((&json["granted"], &json["zombies"], &json["frozen_for_ms"]), (&8.into(), &5.into(), &60_000.into()));
    assert_eq!(json["holders"][1]["lease_ends_in_ms"], 1_895);
    assert_eq!(
        json["rows"][0],
        serde_json::json!({
            "holder": "gate-1", "flow": "/1/chat", "weight": 1, "head": 450, "waiting": 3, "waited_ms": 125, "picked": 1
        })
    );
    assert_eq!(json["meters"][0]["period"], 20_261_122);
    assert_eq!(json["counters"][2], serde_json::json!({"branch": "counter:/1/chat", "counter": 460_800, "time": null}));
}

#[test]
fn another_format_is_not_read() {
    let mut hash = hash();
    hash.insert("v".to_owned(), "4".to_owned());
    let refused = StoredAccount::read(&hash).unwrap_err();
    assert_eq!(refused.to_string(), "is of format \"4\", and this release reads format 3");
}

#[test]
fn a_field_without_sense_is_named() {
    let broken = [
        ("capacity", "many"),
        ("version", "1 2"),
        ("holder:gate-0", "{}"),
        ("rows:gate-1", "1795343390292\n/1/chat 1 450"),
        ("rows:gate-1", "soon\n/1/chat 1 450 3 20"),
        ("picks:gate-1", "[]"),
        ("zombies", r#"{"never":3}"#),
        ("meter:tokens_per_day", r#"{"amount":-1}"#),
        ("level:/1", "10000"),
        ("counter:/1/chat", "-1"),
    ];
    for (field, text) in broken {
        let mut hash = hash();
        hash.insert(field.to_owned(), text.to_owned());
        let expected = Unreadable::Field { field: field.to_owned(), text: text.to_owned() };
        assert_eq!(StoredAccount::read(&hash), Err(expected));
    }
}
