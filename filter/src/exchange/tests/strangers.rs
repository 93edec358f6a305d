//! Whose expense a call is at before it was admitted, and what a stranger may do at its own.

use super::*;
use crate::caller::{Digest, caller_key};

const STREAMED: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

/// Room for two streams, 1 KB of headers and 900 bytes of bodies of strangers.
fn narrow() -> World {
    World::with(|document| {
        document["strangers"] = json!({
            "streams": 2, "header_bytes": 1000, "body_bytes": 900,
            "per_source": {"streams": 2, "header_bytes": 1000, "body_bytes": 900},
        });
        document["tenants"] = json!({"body_bytes": 1000, "idle_streams": 1});
        document["body"] = json!({"max_bytes": 1000, "paused_max_bytes": 4000});
        document["routes"] = json!([{"path": PATH, "dialect": "openai_chat"}, {"dialect": "kserve_grpc_stream"}]);
    })
}

/// Sets the call at hand aside, so that it goes on holding what it holds.
fn aside(world: &mut World) -> Exchange {
    std::mem::replace(&mut world.exchange, Exchange::new(world.config.clone()))
}

fn stream(world: &mut World) -> Step {
    let head = [(":method", "POST"), (":path", STREAMED), ("authorization", "Bearer sk-1")];
    world.head(&[&head[..], &[("content-type", "application/grpc")]].concat())
}

/// The key of a call while nobody has said whose it is.
fn stranger(exchange: &Exchange, world: &World) -> Option<Digest> {
    world.worker.holdings.stranger(exchange.holding()?)
}

fn know(world: &mut World) {
    world.worker.belongs(caller_key("sk-1").digest(), &"dept-a".into(), NOW);
}

#[test]
fn a_stranger_over_its_budget_is_refused_in_its_dialect_and_a_known_caller_is_served_all_the_while() {
    let mut world = narrow();
    stream(&mut world);
    let one = aside(&mut world);
    stream(&mut world);
    let two = aside(&mut world);
    assert_eq!(refused(world.headers(&[])), (503, "stranger_limit"));
    assert_eq!(reply_of(stream(&mut world)).grpc_status, Some(14));
    assert_eq!(world.worker.counters.strangers_refused, 2);
    world.worker.belongs(caller_key("sk-2").digest(), &"dept-b".into(), NOW);
    let known = [(":method", "POST"), (":path", PATH), ("authorization", "Bearer sk-2")];
    assert_eq!(world.head(&known), Step::Hold);
    assert!(matches!(world.body(BODY), Step::Ask { .. }));
    for mut stranger in [one, two] {
        stranger.abandoned(Ended::ByClient, &mut world.worker, NOW);
    }
    assert_eq!(world.headers(&[]), Step::Hold, "what was given back is there again");
}

#[test]
fn long_headers_and_bodies_of_strangers_are_bounded_apart_from_the_tenants() {
    let mut world = narrow();
    assert_eq!(refused(world.headers(&[("x-long", &"x".repeat(1000))])), (503, "stranger_limit"));
    world.headers(&[]);
    assert_eq!(world.exchange.request_body_grew(900, &mut world.worker, NOW), Step::Hold);
    assert_eq!(refused(world.exchange.request_body_grew(901, &mut world.worker, NOW)), (503, "stranger_limit"));
    assert_eq!(world.worker.holdings.strangers().calls, 0);
    know(&mut world);
    assert_eq!(world.headers(&[("x-long", &"x".repeat(1000))]), Step::Hold);
    assert_eq!(world.exchange.request_body_grew(1000, &mut world.worker, NOW), Step::Hold);
    let mut first = aside(&mut world);
    world.headers(&[]);
    let reply = reply_of(world.exchange.request_body_grew(1, &mut world.worker, NOW));
    assert_eq!((reply.status, reply.details), (429, "tenant_held_bytes"));
    first.abandoned(Ended::ByClient, &mut world.worker, NOW);
    assert_eq!(world.worker.holdings.paused_bytes(), 0);
}

#[test]
fn a_call_is_no_stranger_s_any_more_once_its_key_was_admitted_in_another() {
    let mut world = World::closed();
    world.headers(&[]);
    let waiting = aside(&mut world);
    assert!(stranger(&waiting, &world).is_some());
    world.admitted(BODY);
    assert!(stranger(&waiting, &world).is_none());
    assert_eq!(world.worker.holdings.strangers().calls, 0);
    world.headers(&[]);
    assert!(stranger(&world.exchange, &world).is_none(), "nor is the next one");
}

#[test]
fn a_key_that_was_refused_is_a_stranger_s_again() {
    let mut world = World::closed();
    know(&mut world);
    world.asked(BODY);
    world.answer(&rejected(Reason::UnknownKey));
    world.headers(&[]);
    assert!(stranger(&world.exchange, &world).is_some());
}

#[test]
fn only_a_long_body_of_a_stranger_asks_whose_it_is_at_once() {
    let mut world = World::with(|document| document["body"]["max_bytes"] = json!(1_000_000));
    world.headers(&[]);
    world.exchange.request_body_grew(65_536, &mut world.worker, NOW);
    assert_eq!(world.exchange.question(&mut world.worker, NOW), None, "its admission will say it");
    world.exchange.request_body_grew(65_537, &mut world.worker, NOW);
    let (_, question) = world.exchange.question(&mut world.worker, NOW).unwrap();
    assert_eq!(question.key, caller_key("sk-1").proof());
    assert_eq!(world.exchange.question(&mut world.worker, NOW), None, "once is enough");
    know(&mut world);
    world.headers(&[]);
    world.exchange.request_body_grew(65_537, &mut world.worker, NOW);
    assert_eq!(world.exchange.question(&mut world.worker, NOW), None, "it is known");
}

#[test]
fn a_tenant_s_idle_streams_are_bounded_until_their_first_byte() {
    let mut world = narrow();
    know(&mut world);
    assert_eq!(stream(&mut world), Step::Hold);
    let mut first = aside(&mut world);
    let reply = reply_of(stream(&mut world));
    assert_eq!((reply.grpc_status, reply.details), (Some(8), "tenant_idle_streams"));
    let message = crate::dialect::grpc::message("simple", &[]);
    first.message_piece(&message, false, &mut world.worker, NOW);
    assert_eq!(stream(&mut world), Step::Hold);
}

#[test]
fn trailers_cannot_carry_names_that_are_not_a_client_s_to_set() {
    let mut world = World::closed();
    world.headers(&[]);
    let trailers = [("X_Tenant-Id", "forged"), ("x-sluice-new", "1"), ("x-envoy-retry-on", "5xx"), ("api-key", "k")];
    let edits = world.exchange.request_trailers(&headers_of(&[&trailers[..], &[("checksum", "1")]].concat()));
    assert_eq!(edits.len(), 4, "{edits:?}");
    assert!(!has_removed(&edits, "checksum"));
}
