use super::*;
use crate::caller::caller_key;
use proptest::prelude::*;

const NOW: Millis = Millis(1_000);
const SOURCE: &[u8] = b"10.0.0.1:1";

fn limits() -> Limits {
    Limits {
        paused_bytes: 1_000,
        tenant_bytes: 400,
        tenant_idle_streams: 2,
        strangers: Amount { calls: 6, header_bytes: 600, body_bytes: 600 },
        source: Amount { calls: 3, header_bytes: 300, body_bytes: 300 },
    }
}

fn holdings() -> Holdings {
    Holdings::new(limits())
}

fn stranger(holdings: &mut Holdings, key: &str, source: &[u8], header_bytes: u64) -> Result<HoldingId, Full> {
    holdings.of_stranger(&caller_key(key), Source::parse(source), header_bytes, true, NOW)
}

#[test]
fn a_stranger_has_a_budget_of_streams_headers_and_bodies_and_gets_it_back() {
    let mut holdings = holdings();
    let ids: Vec<HoldingId> = (0..3).map(|_| stranger(&mut holdings, "sk-1", SOURCE, 1).unwrap()).collect();
    assert_eq!(stranger(&mut holdings, "sk-2", SOURCE, 1), Err(Full::Strangers), "a fourth stream");
    holdings.end(ids[0]);
    assert_eq!(stranger(&mut holdings, "sk-2", SOURCE, 299), Err(Full::Strangers), "too long a header");
    assert_eq!(holdings.hold(ids[1], 300), Ok(()));
    assert_eq!(holdings.hold(ids[1], 300), Ok(()), "the same bytes");
    assert_eq!(holdings.hold(ids[2], 1), Err(Full::Strangers), "one byte too many");
    holdings.end(ids[1]);
    assert_eq!(holdings.hold(ids[2], 300), Ok(()));
    holdings.end(ids[2]);
    assert_eq!(holdings.strangers(), Amount::default());
    assert!(holdings.sources.is_empty() && holdings.calls.is_empty());
}

#[test]
fn a_stranger_leaves_room_for_those_of_other_addresses_and_all_together_leave_room_for_tenants() {
    let mut holdings = holdings();
    for source in [SOURCE, b"10.0.0.2:1"] {
        for _ in 0..3 {
            let id = stranger(&mut holdings, "sk-1", source, 1).unwrap();
            holdings.hold(id, 100).unwrap();
        }
    }
    assert_eq!(stranger(&mut holdings, "sk-1", b"10.0.0.3:1", 1), Err(Full::Strangers));
    let id = holdings.of_tenant(&"a".into(), false).unwrap();
    assert_eq!(holdings.hold(id, 400), Ok(()));
    assert_eq!(holdings.paused_bytes(), 400);
}

#[test]
fn a_tenant_has_a_share_and_all_have_a_bound() {
    let mut holdings = holdings();
    let hold = |holdings: &mut Holdings, tenant: &str, bytes| {
        let id = holdings.of_tenant(&tenant.into(), false).unwrap();
        holdings.hold(id, bytes).map(|()| id)
    };
    let first = hold(&mut holdings, "a", 300).unwrap();
    assert_eq!(hold(&mut holdings, "a", 101), Err(Full::TenantBytes));
    hold(&mut holdings, "b", 400).unwrap();
    assert_eq!(hold(&mut holdings, "c", 301), Err(Full::Worker));
    holdings.end(first);
    hold(&mut holdings, "a", 400).unwrap();
}

#[test]
fn a_tenant_s_streams_may_idle_up_to_its_bound_and_one_that_has_begun_does_not_idle() {
    let mut holdings = holdings();
    let idle = |holdings: &mut Holdings| holdings.of_tenant(&"a".into(), true);
    let first = idle(&mut holdings).unwrap();
    let second = idle(&mut holdings).unwrap();
    assert_eq!(idle(&mut holdings), Err(Full::TenantIdleStreams));
    assert!(holdings.of_tenant(&"a".into(), false).is_ok(), "calls are no idle streams");
    assert!(holdings.of_tenant(&"b".into(), true).is_ok(), "others have their own bound");
    holdings.hold(first, 1).unwrap();
    idle(&mut holdings).unwrap();
    holdings.end(second);
    idle(&mut holdings).unwrap();
    assert_eq!(idle(&mut holdings), Err(Full::TenantIdleStreams));
}

#[test]
fn calls_of_a_key_become_its_tenant_s_when_the_service_has_said_whose_it_is() {
    let mut holdings = holdings();
    let one = stranger(&mut holdings, "sk-1", SOURCE, 10).unwrap();
    let two = stranger(&mut holdings, "sk-1", b"10.0.0.2:1", 10).unwrap();
    let other = stranger(&mut holdings, "sk-2", SOURCE, 10).unwrap();
    holdings.hold(one, 50).unwrap();
    holdings.verified(caller_key("sk-1").digest(), &"a".into());
    assert_eq!(holdings.strangers(), Amount { calls: 1, header_bytes: 10, body_bytes: 0 });
    assert_eq!(holdings.paused_bytes(), 50);
    assert!(holdings.stranger(one).is_none() && holdings.stranger(other).is_some());
    holdings.hold(two, 350).unwrap();
    assert_eq!(holdings.hold(one, 51), Err(Full::TenantBytes));
    for id in [one, two, other] {
        holdings.end(id);
    }
    assert_eq!((holdings.paused_bytes(), holdings.tenants.len(), holdings.sources.len()), (0, 0, 0));
}

#[test]
fn the_service_is_asked_once_about_a_key_whatever_number_of_calls_bears_it() {
    let mut holdings = holdings();
    let at = |ms| Millis(NOW.0 + ms);
    let one = stranger(&mut holdings, "sk-1", SOURCE, 1).unwrap();
    stranger(&mut holdings, "sk-1", SOURCE, 1).unwrap();
    assert!(holdings.questions(at(4)).is_empty(), "an admission may say it first");
    assert_eq!(holdings.questions(at(5)).len(), 1);
    assert!(holdings.questions(at(1_000)).is_empty() && holdings.question(one, at(1_000)).is_none());
    assert!(holdings.question(one, at(1_005)).is_some(), "an answer that was lost is asked for again");
    holdings.verified(caller_key("sk-1").digest(), &"a".into());
    assert!(holdings.questions(at(9_000)).is_empty() && holdings.question(one, at(9_000)).is_none());
}

#[derive(Clone, Debug)]
enum Event {
    Tenant { tenant: u8, is_idle: bool },
    Stranger { key: u8, source: u8, header_bytes: u64 },
    Hold { call: usize, bytes: u64 },
    Verified { key: u8 },
    End { call: usize },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0..3u8, any::<bool>()).prop_map(|(tenant, is_idle)| Event::Tenant { tenant, is_idle }),
        (0..3u8, 0..3u8, 0..200u64).prop_map(|(key, source, header_bytes)| Event::Stranger {
            key,
            source,
            header_bytes
        }),
        (0..20usize, 0..500u64).prop_map(|(call, bytes)| Event::Hold { call, bytes }),
        (0..3u8).prop_map(|key| Event::Verified { key }),
        (0..20usize).prop_map(|call| Event::End { call }),
    ]
}

proptest! {
    #[test]
    fn strangers_stay_within_their_budget_and_everything_is_given_back(
        events in proptest::collection::vec(event(), 0..60),
    ) {
        let mut holdings = holdings();
        let mut calls: Vec<HoldingId> = Vec::new();
        for event in events {
            match event {
                Event::Tenant { tenant, is_idle } => calls.extend(holdings.of_tenant(&tenant.to_string().into(), is_idle)),
                Event::Stranger { key, source, header_bytes } => {
                    let source = format!("10.0.0.{source}");
                    calls.extend(stranger(&mut holdings, &format!("sk-{key}"), source.as_bytes(), header_bytes));
                }
                Event::Hold { call, bytes } => {
                    if let Some(id) = calls.get(call) {
                        let _ = holdings.hold(*id, bytes);
                    }
                }
                Event::Verified { key } => {
                    holdings.verified(caller_key(&format!("sk-{key}")).digest(), &key.to_string().into());
                }
                Event::End { call } => {
                    if call < calls.len() {
                        holdings.end(calls.swap_remove(call));
                    }
                }
            }
            prop_assert!(holdings.strangers().is_within(limits().strangers));
            prop_assert!(holdings.sources.values().all(|own| own.is_within(limits().source)));
            let paused: u64 = holdings.tenants.values().map(|share| share.body_bytes).sum();
            prop_assert_eq!(paused, holdings.paused_bytes());
        }
        for id in calls {
            holdings.end(id);
        }
        prop_assert_eq!((holdings.strangers(), holdings.paused_bytes()), (Amount::default(), 0));
        prop_assert!(holdings.sources.is_empty() && holdings.calls.is_empty() && holdings.tenants.is_empty());
        prop_assert!(holdings.questions(Millis(100_000)).is_empty());
    }
}
