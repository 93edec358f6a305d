//! gRPC calls: admitted by their first message or their last, and watched to their end.

use super::*;
use crate::dialect::grpc::{asks_for_final, message};

const UNARY: &str = "/inference.GRPCInferenceService/ModelInfer";
const STREAMED: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

fn world() -> World {
    World::with(|document| {
        document["routes"] =
            json!([{"dialect": "kserve_grpc_infer", "charge": 2}, {"dialect": "kserve_grpc_stream", "charge": 2}]);
    })
}

fn start(world: &mut World, path: &str) -> Step {
    let usual = [(":method", "POST"), (":path", path), ("authorization", "Bearer sk-1")];
    world.head(&[&usual[..], &[("content-type", "application/grpc")]].concat())
}

fn piece(world: &mut World, piece: &[u8], held: u64, is_end: bool) -> Step {
    world.exchange.request_body_piece(piece, held, is_end, &mut world.worker, NOW)
}

fn send(world: &mut World, bytes: &[u8], is_end: bool) -> Step {
    world.exchange.message_piece(bytes, is_end, &mut world.worker, NOW)
}

fn status(step: Step) -> (Option<u8>, &'static str) {
    let reply = reply_of(step);
    (reply.grpc_status, reply.details)
}

fn head(world: &mut World, headers: &[(&str, &str)], is_end: bool) {
    world.exchange.reply_headers(
        &headers_of(&[&[(":status", "200")], headers].concat()),
        is_end,
        &mut world.worker,
        NOW,
    );
}

fn trailers(world: &mut World, status: &str) {
    world.exchange.reply_trailers(&headers_of(&[("grpc-status", status)]), &mut world.worker, NOW);
}

/// An answer, and what goes upstream then.
fn goes_on(world: &mut World, answer: &Answer) -> Vec<u8> {
    assert!(matches!(world.answer(answer), Step::Forward { .. }));
    world.exchange.messages_to_send(Vec::new).unwrap()
}

/// A reply's frame, and the question that follows it.
fn answered(world: &mut World) -> Step {
    let World { exchange, worker, .. } = world;
    exchange.reply_body(&[0, 0, 0, 0, 0], false, worker, NOW);
    exchange.next_message(worker)
}

/// As it goes upstream: it asks for its empty final reply.
fn asking(model: &str, rest: &[u8]) -> Vec<u8> {
    message(model, &[rest, &asks_for_final()].concat())
}

#[test]
fn a_unary_call_is_asked_about_when_it_is_complete() {
    let mut world = world();
    assert_eq!(start(&mut world, UNARY), Step::Hold);
    let whole = message("simple", &[]);
    let (head_bytes, tail) = whole.split_at(7);
    assert_eq!(piece(&mut world, head_bytes, 7, false), Step::Hold);
    assert_eq!(piece(&mut world, tail, whole.len() as u64, false), Step::Hold);
    let Step::Ask { request, .. } = piece(&mut world, &[], whole.len() as u64, true) else { panic!("asks") };
    assert_eq!((request.model.as_deref(), request.input_tokens), (Some("simple"), Tokens(2)));
    assert!(matches!(world.answer(&admitted()), Step::Forward { .. }));
    head(&mut world, &[], false);
    world.reply_body("tensors", false);
    trailers(&mut world, "0");
    assert_eq!(world.settled(), (Outcome::Completed, UsageSource::Fixed, 2, 0));
}

#[test]
fn a_status_other_than_ok_costs_nothing_unless_it_is_the_clients_own_doing() {
    for (code, expected) in [
        ("5", (Outcome::Failed, UsageSource::None, 0, 0)),
        ("1", (Outcome::Aborted, UsageSource::Fixed, 2, 0)),
        ("4", (Outcome::Aborted, UsageSource::Fixed, 2, 0)),
    ] {
        for in_trailers in [true, false] {
            let mut world = world();
            start(&mut world, UNARY);
            let whole = message("simple", &[]);
            piece(&mut world, &whole, whole.len() as u64, true);
            world.answer(&admitted());
            if in_trailers {
                head(&mut world, &[], false);
                trailers(&mut world, code);
            } else {
                head(&mut world, &[("grpc-status", code)], true);
            }
            assert_eq!(world.settled(), expected, "{code}");
        }
    }
}

#[test]
fn a_failure_may_be_envoy_s_own_by_either_status() {
    for (headers, expected) in [
        (&[(":status", "200"), ("grpc-status", "0")][..], false),
        (&[(":status", "200")], false),
        (&[(":status", "200"), ("grpc-status", "13")], true),
        (&[(":status", "503")], true),
    ] {
        assert_eq!(is_failure(&headers_of(headers)), expected, "{headers:?}");
    }
}

#[test]
fn a_client_that_makes_envoy_fail_its_stream_pays_for_the_message_under_way() {
    for (ended, expected) in [(Ended::ByClient, (Outcome::Aborted, 2)), (Ended::ByUpstream, (Outcome::Failed, 0))] {
        let mut world = world();
        start(&mut world, STREAMED);
        assert!(matches!(send(&mut world, &message("simple", &[]), false), Step::Ask { .. }));
        goes_on(&mut world, &admitted());
        world.exchange.envoy_replies(ended, &mut world.worker, NOW);
        head(&mut world, &[("grpc-status", "13")], true);
        let (outcome, _, input, _) = world.settled();
        assert_eq!((outcome, input), expected);
        assert!(world.settlements().is_empty());
    }
}

#[test]
fn only_a_stream_may_wait_with_its_first_message() {
    let mut world = world();
    start(&mut world, UNARY);
    assert!(!world.exchange.may_idle());
    start(&mut world, STREAMED);
    assert!(world.exchange.may_idle());
    let first = message("simple", &[]);
    assert_eq!(send(&mut world, &first[..7], false), Step::Hold);
    assert_eq!(world.worker.holdings.strangers().body_bytes, 7, "what has come of it is counted");
    assert!(matches!(send(&mut world, &first[7..], false), Step::Ask { .. }));
    assert!(!world.exchange.may_idle());
}

#[test]
fn the_messages_of_a_stream_are_calls_one_after_the_other() {
    let mut world = world();
    start(&mut world, STREAMED);
    let message = message("simple", &[]);
    let Step::Ask { request: first, .. } = send(&mut world, &message.repeat(2), false) else { panic!("asks") };
    assert_eq!((first.model.as_deref(), first.input_tokens), (Some("simple"), Tokens(2)));
    assert_eq!(goes_on(&mut world, &admitted()), asking("simple", &[]));
    assert_eq!(world.worker.holdings.paused_bytes(), message.len() as u64, "the second waits");
    head(&mut world, &[], false);
    assert_eq!(send(&mut world, &message[..9], false), Step::Hold);
    let Step::Ask { request: second, tags } = answered(&mut world) else { panic!("asks") };
    assert!(second.id != first.id && tags.is_empty(), "the stream is named by its first message");
    assert_eq!(world.settled(), (Outcome::Completed, UsageSource::Fixed, 2, 0));
    goes_on(&mut world, &admitted());
    assert_eq!(answered(&mut world), Step::Hold, "the third has not come in full");
    assert_eq!(world.exchange.idles(), Some(true));
    assert_eq!(world.settled(), (Outcome::Completed, UsageSource::Fixed, 2, 0));
    assert!(matches!(send(&mut world, &message[9..], false), Step::Ask { .. }));
    goes_on(&mut world, &admitted());
    assert_eq!(send(&mut world, &[], true), Step::Continue);
    trailers(&mut world, "0");
    assert_eq!(world.settled(), (Outcome::Completed, UsageSource::Fixed, 2, 0));
    assert_eq!(world.worker.holdings.paused_bytes(), 0);
    assert!(!world.exchange.owes_settlement() && world.exchange.idles().is_none());
}

#[test]
fn a_message_that_is_refused_ends_its_stream_and_owes_nothing() {
    let mut world = world();
    start(&mut world, STREAMED);
    send(&mut world, &message("simple", &[]).repeat(3), false);
    goes_on(&mut world, &admitted());
    head(&mut world, &[], false);
    assert!(matches!(answered(&mut world), Step::Ask { .. }));
    assert_eq!(world.settlements().len(), 1);
    let step = world.answer(&rejected(Reason::TenantRequestsPerMinute));
    assert_eq!(status(step), (Some(8), "tenant_requests_per_minute"));
    world.abandoned(Ended::ByUpstream);
    assert_eq!((world.settlements().len(), world.worker.holdings.paused_bytes()), (0, 0));
}

#[test]
fn a_stream_that_ends_while_the_next_message_is_asked_about_gives_it_back() {
    let mut world = world();
    start(&mut world, STREAMED);
    send(&mut world, &message("simple", &[]).repeat(2), false);
    goes_on(&mut world, &admitted());
    head(&mut world, &[], false);
    assert!(matches!(answered(&mut world), Step::Ask { .. }));
    world.settlements();
    trailers(&mut world, "0");
    assert_eq!(world.settled(), (Outcome::Cancelled, UsageSource::None, 0, 0));
    assert_eq!(world.answer(&admitted()), Step::Hold);
    assert_eq!(world.worker.holdings.paused_bytes(), 0);
}

#[test]
fn a_stream_that_fails_costs_the_message_under_way_if_it_had_an_answer() {
    const MORE_WILL_COME: &[u8] = b"\0\0\0\0\x21\x12\x1f\x22\x1d\x0a\x15triton_final_response\x12\x04\x08\0\x10\0";
    for (answer, code, expected) in [
        (MORE_WILL_COME, "13", (Outcome::Failed, UsageSource::Fixed, 2, 0)),
        (b"", "13", (Outcome::Failed, UsageSource::None, 0, 0)),
        (b"", "4", (Outcome::Aborted, UsageSource::Fixed, 2, 0)),
    ] {
        let mut world = world();
        start(&mut world, STREAMED);
        send(&mut world, &message("simple", &[]).repeat(2), false);
        goes_on(&mut world, &admitted());
        head(&mut world, &[], false);
        let World { exchange, worker, .. } = &mut world;
        exchange.reply_body(answer, false, worker, NOW);
        trailers(&mut world, code);
        assert_eq!(world.settled(), expected, "{code}");
        assert_eq!(world.worker.holdings.paused_bytes(), 0);
    }
}

#[test]
fn a_client_may_end_its_side_while_one_message_waits_and_no_more() {
    for (waiting, expected) in [(1, None), (2, Some((Some(3), "invalid_body")))] {
        let mut world = world();
        start(&mut world, STREAMED);
        let message = message("simple", &[]);
        send(&mut world, &message, false);
        goes_on(&mut world, &admitted());
        send(&mut world, &message.repeat(waiting), false);
        let step = send(&mut world, &[], true);
        match expected {
            None => assert_eq!(step, Step::Hold),
            Some(expected) => {
                assert_eq!(status(step), expected);
                assert_eq!(world.settled(), (Outcome::Aborted, UsageSource::Fixed, 2, 0), "what was under way");
            }
        }
    }
    let mut world = world();
    start(&mut world, STREAMED);
    assert_eq!(status(send(&mut world, &[], true)), (Some(3), "invalid_body"), "no message at all");
}

#[test]
fn no_more_of_a_stream_waits_than_a_body_may_be_long() {
    let mut world = world();
    start(&mut world, STREAMED);
    let message = message("simple", &[0x32, 100].iter().copied().chain([0; 100]).collect::<Vec<_>>());
    send(&mut world, &message, false);
    goes_on(&mut world, &admitted());
    let fit = 1000 / message.len();
    assert_eq!(send(&mut world, &message.repeat(fit), false), Step::Hold);
    assert_eq!(status(send(&mut world, &message, false)), (Some(8), "body_too_large"));
    assert_eq!(world.worker.holdings.paused_bytes(), 0);
}

#[test]
fn a_stream_cannot_change_its_model_before_or_after_it_was_admitted() {
    for admitted_before in [false, true] {
        let mut world = world();
        start(&mut world, STREAMED);
        send(&mut world, &message("simple", &[]), false);
        if admitted_before {
            world.answer(&admitted());
        }
        assert_eq!(status(send(&mut world, &message("secret", &[]), false)), (Some(3), "invalid_body"));
        let settlements = world.settlements();
        let [settlement] = settlements.as_slice() else { panic!("one, not {settlements:?}") };
        let expected = if admitted_before { Outcome::Aborted } else { Outcome::Cancelled };
        assert_eq!(settlement.outcome, expected);
        assert_eq!(world.answer(&admitted()), Step::Hold);
    }
}

#[test]
fn what_is_wrong_is_told_as_a_grpc_status() {
    let mut world = world();
    start(&mut world, UNARY);
    assert_eq!(status(piece(&mut world, &[1, 0, 0, 0, 0], 5, false)), (Some(12), "unsupported_encoding"));
    start(&mut world, UNARY);
    assert_eq!(status(piece(&mut world, &[0, 0], 2, true)), (Some(3), "invalid_body"));
    start(&mut world, UNARY);
    assert_eq!(status(piece(&mut world, &[], 0, true)), (Some(3), "invalid_body"));
    start(&mut world, UNARY);
    let two = message("m", &[]).repeat(2);
    assert_eq!(status(piece(&mut world, &two, two.len() as u64, false)), (Some(3), "invalid_body"));
    start(&mut world, UNARY);
    assert_eq!(status(piece(&mut world, &message("m", &[0; 2]), 2000, false)), (Some(8), "body_too_large"));
    let load = start(&mut world, "/inference.GRPCInferenceService/RepositoryModelLoad");
    assert_eq!(status(load), (Some(12), "path_not_listed"));
    let usual = [(":method", "POST"), (":path", UNARY), ("authorization", "Bearer sk-1")];
    assert_eq!(status(world.head(&usual)), (Some(12), "unsupported_encoding"));
}

fn renaming() -> Answer {
    let Ok(AdmissionReply::Admitted(mut grant)) = serde_json::from_slice(&admitted().body) else { unreachable!() };
    grant.upstream_model = Some("real".into());
    answer_of(&AdmissionReply::Admitted(grant))
}

#[test]
fn an_alias_is_written_into_every_message_and_no_length_is_told() {
    let real = [&[0x0a, 4][..], b"real"].concat();
    let mut world = world();
    start(&mut world, STREAMED);
    send(&mut world, &message("alias", &[]).repeat(2), false);
    let Step::Forward { edits, body, .. } = world.answer(&renaming()) else { panic!("forwards") };
    assert!(body.is_empty() && has_removed(&edits, "content-length") && has_removed(&edits, "grpc-accept-encoding"));
    assert_eq!(world.exchange.messages_to_send(Vec::new), Some(asking("alias", &real)));
    head(&mut world, &[], false);
    assert!(matches!(answered(&mut world), Step::Ask { .. }));
    assert_eq!(goes_on(&mut world, &renaming()), asking("alias", &real));

    start(&mut world, UNARY);
    let message_bytes = message("alias", &[]);
    piece(&mut world, &message_bytes, message_bytes.len() as u64, true);
    assert!(matches!(world.answer(&renaming()), Step::Forward { .. }));
    assert_eq!(world.exchange.messages_to_send(|| message_bytes), Some(message("alias", &real)));
}

#[test]
fn a_message_that_needs_nothing_goes_on_as_it_is() {
    let mut world = world();
    start(&mut world, UNARY);
    let unary = message("simple", &[]);
    piece(&mut world, &unary, unary.len() as u64, true);
    assert!(matches!(world.answer(&admitted()), Step::Forward { .. }));
    assert_eq!(world.exchange.messages_to_send(|| unary), None, "Envoy has it");
    start(&mut world, STREAMED);
    let asks = asking("simple", &[]);
    send(&mut world, &asks, false);
    assert_eq!(goes_on(&mut world, &admitted()), asks, "it asks by itself");
}
