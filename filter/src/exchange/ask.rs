//! The question to the service: may this call go on, and what may this key use.

use super::{Asked, Caller, Exchange, Stage, Step, tag};
use crate::dialect::Call;
use crate::usage::Shape;
use crate::worker::Worker;
use sluice_policy::units::Tokens;
use sluice_policy::wire::{AdmissionRequest, ModelsRequest, WIRE_VERSION};

impl Exchange {
    /// `call` is what the body told, if it was looked into.
    pub(super) fn ask(&mut self, caller: Caller, call: Option<Call>, body_bytes: u64, worker: &mut Worker) -> Step {
        let was_read = call.is_some();
        let call = call.unwrap_or_default();
        let sequences = call.sequences.max(1);
        let route = &caller.route;
        let is_fixed = route.dialect.reply() == Shape::Fixed;
        let fixed = is_fixed.then(|| route.charge.times(u64::from(sequences)));
        // In headers mode the prompt is guessed from the body's length.
        let estimate = if was_read { call.input_tokens } else { Tokens(body_bytes.div_ceil(4)) };
        let of_path = caller.path_model.as_ref().map(|of_path| of_path.model.clone());
        let of_frames = self.frames.as_ref().and_then(|frames| frames.model()).map(str::to_owned);
        let id = worker.mint();
        // The access log has one line for a stream: its first message names it.
        let is_first = self.pipe.as_ref().is_none_or(|pipe| !pipe.is_open());
        let tags = if is_first { vec![(tag::ADMISSION, id.to_string())] } else { Vec::new() };
        let request = AdmissionRequest {
            version: WIRE_VERSION,
            id: id.clone(),
            key: caller.key.proof(),
            model: call.model.or(of_path).or(of_frames),
            pool: route.pool.clone(),
            input_tokens: fixed.unwrap_or(estimate),
            max_tokens: if is_fixed { Some(Tokens::ZERO) } else { call.max_tokens },
            prompts: if is_fixed { 0 } else { call.prompts.max(1) },
            sequences: if is_fixed { 1 } else { sequences },
            stream: call.stream,
            body_bytes,
            priority: caller.priority,
            deadline_ms: caller.deadline,
        };
        self.stage = Stage::Asking(Asked {
            caller,
            id,
            model: request.model.clone(),
            input_tokens: request.input_tokens,
            prompts: request.prompts,
            sequences: request.sequences,
            n: call.n,
            fixed,
            streams: request.stream,
            max_tokens: request.max_tokens,
            turns: call.turns.max(1),
            echoes: call.echoes,
            body_bytes: usize::try_from(body_bytes).unwrap_or(usize::MAX),
            usage_request: call.usage_request,
            model_place: call.model_place,
            limits: call.limits,
            turn: call.turn,
        });
        Step::Ask { request: Box::new(request), tags }
    }

    pub(super) fn list(&mut self, caller: Caller) -> Step {
        let request = ModelsRequest { version: WIRE_VERSION, key: caller.key.proof() };
        self.stage = Stage::Listing(caller);
        Step::List { request: Box::new(request) }
    }
}
