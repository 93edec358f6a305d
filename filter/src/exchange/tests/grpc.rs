//! gRPC calls: admitted by their first message or their last, and watched to their end.

use super::*;
use crate::dialect::grpc::message;

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

fn status(step: Step) -> (Option<u8>, &'static str) {
    let reply = reply_of(step);
    (reply.grpc_status, reply.details)
}

#[test]
fn a_unary_call_is_asked_about_when_it_is_complete() {
    let mut world = world();
    assert_eq!(start(&mut world, UNARY), Step::Hold);
    let whole = message("simple", &[]);
    let (head, tail) = whole.split_at(7);
    assert_eq!(piece(&mut world, head, 7, false), Step::Hold);
    assert_eq!(piece(&mut world, tail, whole.len() as u64, false), Step::Hold);
    let Step::Ask { request, .. } = piece(&mut world, &[], whole.len() as u64, true) else { panic!("asks") };
    assert_eq!((request.model.as_deref(), request.input_tokens), (Some("simple"), Tokens(2)));
    assert!(matches!(world.answer(&admitted()), Step::Forward { .. }));
    let World { exchange, worker, .. } = &mut world;
    exchange.reply_headers(&headers_of(&[(":status", "200")]), false, worker, NOW);
    exchange.reply_body(b"tensors", false, worker, NOW);
    exchange.reply_trailers(&headers_of(&[("grpc-status", "0")]), worker, NOW);
    assert_eq!(world.settled(), (Outcome::Completed, UsageSource::Fixed, 2, 0));
}

#[test]
fn a_status_other_than_ok_is_a_failure_that_costs_nothing() {
    for in_trailers in [true, false] {
        let mut world = world();
        start(&mut world, UNARY);
        let whole = message("simple", &[]);
        piece(&mut world, &whole, whole.len() as u64, true);
        world.answer(&admitted());
        let World { exchange, worker, .. } = &mut world;
        if in_trailers {
            exchange.reply_headers(&headers_of(&[(":status", "200")]), false, worker, NOW);
            exchange.reply_trailers(&headers_of(&[("grpc-status", "5")]), worker, NOW);
        } else {
            exchange.reply_headers(&headers_of(&[(":status", "200"), ("grpc-status", "5")]), true, worker, NOW);
        }
        assert_eq!(world.settled(), (Outcome::Failed, UsageSource::None, 0, 0));
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
    piece(&mut world, &first[..7], 7, false);
    assert_eq!(world.worker.paused_bytes, 7, "what has come of it is counted");
    piece(&mut world, &first[7..], first.len() as u64, false);
    assert!(!world.exchange.may_idle());
}

#[test]
fn a_stream_goes_on_after_its_first_message_and_each_message_costs() {
    let mut world = world();
    start(&mut world, STREAMED);
    let first = message("simple", &[]);
    let Step::Ask { request, .. } = piece(&mut world, &first, first.len() as u64, false) else { panic!("asks") };
    assert_eq!(request.model.as_deref(), Some("simple"));
    assert_eq!(piece(&mut world, &first, 2 * first.len() as u64, false), Step::Hold, "held until there is an answer");
    assert!(matches!(world.answer(&admitted()), Step::Forward { .. }));
    assert_eq!(world.exchange.wants(), Wants::Pieces);
    assert_eq!(piece(&mut world, &first, first.len() as u64, true), Step::Continue);
    let World { exchange, worker, .. } = &mut world;
    exchange.reply_headers(&headers_of(&[(":status", "200")]), false, worker, NOW);
    exchange.reply_trailers(&headers_of(&[("grpc-status", "0")]), worker, NOW);
    assert_eq!(world.settled(), (Outcome::Completed, UsageSource::Fixed, 6, 0));
    assert_eq!(world.worker.paused_bytes, 0);
}

#[test]
fn a_stream_that_fails_behind_its_answers_costs_the_messages_it_sent() {
    for (answer, expected) in [("tensors", (UsageSource::Fixed, 4)), ("", (UsageSource::None, 0))] {
        let mut world = world();
        start(&mut world, STREAMED);
        let message = message("simple", &[]);
        piece(&mut world, &message, message.len() as u64, false);
        world.answer(&admitted());
        piece(&mut world, &message, message.len() as u64, false);
        let World { exchange, worker, .. } = &mut world;
        exchange.reply_headers(&headers_of(&[(":status", "200")]), false, worker, NOW);
        exchange.reply_body(answer.as_bytes(), false, worker, NOW);
        exchange.reply_trailers(&headers_of(&[("grpc-status", "4")]), worker, NOW);
        let (source, input) = expected;
        assert_eq!(world.settled(), (Outcome::Failed, source, input, 0), "{answer:?}");
    }
}

#[test]
fn a_stream_cannot_change_its_model_before_or_after_it_was_admitted() {
    for admitted_before in [false, true] {
        let mut world = world();
        start(&mut world, STREAMED);
        let (first, other) = (message("simple", &[]), message("secret", &[]));
        piece(&mut world, &first, first.len() as u64, false);
        if admitted_before {
            world.answer(&admitted());
        }
        let step = piece(&mut world, &other, (first.len() + other.len()) as u64, false);
        assert_eq!(status(step), (Some(3), "invalid_body"));
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
    assert_eq!(status(piece(&mut world, &message("m", &[0; 2]), 2000, false)), (Some(8), "body_too_large"));
    let load = start(&mut world, "/inference.GRPCInferenceService/RepositoryModelLoad");
    assert_eq!(status(load), (Some(12), "path_not_listed"));
    let usual = [(":method", "POST"), (":path", UNARY), ("authorization", "Bearer sk-1")];
    assert_eq!(status(world.head(&usual)), (Some(12), "unsupported_encoding"));
}

#[test]
fn an_alias_is_written_into_every_message_and_no_length_is_told() {
    let mut world = world();
    start(&mut world, STREAMED);
    let message = message("alias", &[]);
    piece(&mut world, &message, message.len() as u64, false);
    assert!(!world.exchange.renames(), "nothing is known before it is admitted");
    let Ok(AdmissionReply::Admitted(mut grant)) = serde_json::from_slice(&admitted().body) else { unreachable!() };
    grant.upstream_model = Some("real".into());
    let Step::Forward { edits, body, .. } = world.answer(&answer_of(&AdmissionReply::Admitted(grant))) else {
        panic!("forwards")
    };
    assert!(body.is_empty() && has_removed(&edits, "content-length") && world.exchange.renames());
    let renamed = [&[0, 0, 0, 0, 13, 0x0a, 5][..], b"alias", &[0x0a, 4], b"real"].concat();
    assert_eq!(world.exchange.renamed(&message), renamed);
    assert_eq!(piece(&mut world, &message, message.len() as u64, true), Step::Continue);
    assert_eq!(world.exchange.renamed(&message), renamed);
}

#[test]
fn a_model_with_its_own_name_leaves_every_message_as_it_is() {
    let mut world = world();
    start(&mut world, UNARY);
    let message = message("simple", &[]);
    piece(&mut world, &message, message.len() as u64, true);
    assert!(matches!(world.answer(&admitted()), Step::Forward { .. }));
    assert!(!world.exchange.renames());
}
