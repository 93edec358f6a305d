//! Whatever happens in whatever order, an admission is settled once or not at all.

use super::*;
use proptest::prelude::*;

/// Something that Envoy may tell the filter, in any order, also where it never would.
#[derive(Clone, Debug)]
enum Event {
    Headers,
    BodyGrew,
    Body(&'static str),
    Answer(Answer),
    CouldNotAsk,
    ReplyHeaders { status: &'static str, kind: &'static str, is_end: bool },
    ReplyBody { piece: &'static str, is_end: bool },
    ReplyTrailers,
    BodyWasNotChanged,
    Logged(Ended),
}

fn event() -> impl Strategy<Value = Event> {
    let answers = [admitted(), rejected(Reason::QueueFull), away()];
    let pieces = ["", "{}", "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}}\n\n", "da"];
    prop_oneof![
        Just(Event::Headers),
        Just(Event::BodyGrew),
        proptest::sample::select(vec![BODY, STREAM, "{}"]).prop_map(Event::Body),
        proptest::sample::select(answers.to_vec()).prop_map(Event::Answer),
        Just(Event::CouldNotAsk),
        (
            proptest::sample::select(vec!["200", "503", "x"]),
            proptest::sample::select(vec!["application/json", "text/event-stream", "text/plain"]),
            any::<bool>(),
        )
            .prop_map(|(status, kind, is_end)| Event::ReplyHeaders { status, kind, is_end }),
        (proptest::sample::select(pieces.to_vec()), any::<bool>())
            .prop_map(|(piece, is_end)| Event::ReplyBody { piece, is_end }),
        Just(Event::ReplyTrailers),
        Just(Event::BodyWasNotChanged),
        proptest::sample::select(vec![Ended::ByClient, Ended::ByUpstream]).prop_map(Event::Logged),
    ]
}

/// The likely order, so that random events strike at every stage.
fn usual() -> Vec<Event> {
    vec![
        Event::Headers,
        Event::Body(STREAM),
        Event::Answer(admitted()),
        Event::ReplyHeaders { status: "200", kind: "text/event-stream", is_end: false },
        Event::ReplyBody { piece: "data: x\n\n", is_end: false },
    ]
}

/// Feeds one event; returns the step, where the event has one.
fn feed(world: &mut World, event: &Event) -> Option<Step> {
    let World { exchange, worker, .. } = world;
    match event {
        // A stream has one head.
        Event::Headers if !matches!(exchange.stage, Stage::New) => None,
        Event::Headers => {
            let head = headers_of(&[(":method", "POST"), (":path", PATH), ("api-key", "sk-1")]);
            Some(exchange.request_headers(&head, false, worker, NOW))
        }
        Event::BodyGrew => Some(exchange.request_body_grew(5, worker, NOW)),
        Event::Body(body) => Some(exchange.request_body_ended(body.as_bytes(), body.len() as u64, worker, NOW)),
        Event::Answer(answer) => Some(exchange.answered(answer, worker, NOW)),
        Event::CouldNotAsk => Some(exchange.could_not_ask(worker, NOW)),
        Event::ReplyHeaders { status, kind, is_end } => {
            let head = headers_of(&[(":status", status), ("content-type", kind)]);
            exchange.reply_headers(&head, *is_end, worker, NOW);
            None
        }
        Event::ReplyBody { piece, is_end } => {
            exchange.reply_body(piece.as_bytes(), *is_end, worker, NOW);
            None
        }
        Event::ReplyTrailers => {
            exchange.reply_trailers(&headers_of(&[("grpc-status", "0")]), worker, NOW);
            None
        }
        Event::BodyWasNotChanged => Some(exchange.body_was_not_changed(worker, NOW)),
        Event::Logged(ended) => {
            exchange.abandoned(*ended, worker, NOW);
            None
        }
    }
}

proptest! {
    #[test]
    fn an_admission_is_settled_exactly_once_unless_it_was_rejected_or_never_asked_for(
        begins in 0usize..=5,
        events in proptest::collection::vec(event(), 0..12),
        opens: bool,
    ) {
        let mut world = if opens { World::open() } else { World::closed() };
        let (mut asked, mut excused) = (false, false);
        let all = usual().into_iter().take(begins).chain(events).chain([Event::Logged(Ended::ByClient)]);
        for event in all {
            let was_asking = matches!(world.exchange.stage, Stage::Asking(_));
            let step = feed(&mut world, &event);
            asked |= matches!(step, Some(Step::Ask { .. }));
            let is_refused = matches!(step, Some(Step::Reply { .. }));
            let owes_nothing = matches!(&event, Event::CouldNotAsk)
                || matches!(&event, Event::Answer(answer) if *answer == rejected(Reason::QueueFull));
            excused |= was_asking && is_refused && owes_nothing;
        }
        let settled = world.settlements().len();
        prop_assert_eq!(settled, usize::from(asked && !excused));
        prop_assert!(!world.exchange.owes_settlement());
        prop_assert_eq!(world.worker.holdings.paused_bytes(), 0);
        prop_assert_eq!(world.worker.holdings.strangers().calls, 0);
    }
}
