//! KServe's gRPC service, as Triton speaks it: two methods. Every other one, loading and unloading models among them,
//! is a path that nobody lists.
//!
//! Charged by the request; in a stream every message is one. Of a message the name of the model is read, and put in where
//! it is an alias; of the replies of a stream, which of them ends a message.

mod amend;
mod frames;
mod replies;
mod wire;

use super::{Reads, Spec};
use crate::refusal::Style;
use crate::usage::Shape;
pub(crate) use amend::{amended, model_name};
#[cfg(test)]
pub(crate) use frames::message;
pub(crate) use frames::{Frames, Wrong};
pub(crate) use replies::{Replies, asks_for_final, has_asked_for_final};

pub(super) const INFER: Spec = Spec {
    name: "kserve_grpc_infer",
    paths: &["/inference.GRPCInferenceService/ModelInfer"],
    method: Some("POST"),
    query: &[],
    reads: Reads::Messages { is_stream: false },
    style: Style::Grpc,
    reply: Shape::Fixed,
};

pub(super) const STREAM_INFER: Spec = Spec {
    name: "kserve_grpc_stream",
    paths: &["/inference.GRPCInferenceService/ModelStreamInfer"],
    method: Some("POST"),
    query: &[],
    reads: Reads::Messages { is_stream: true },
    style: Style::Grpc,
    reply: Shape::Fixed,
};
