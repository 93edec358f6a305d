//! KServe's gRPC service, as Triton speaks it: two methods. Every other one, loading and unloading models among them,
//! is a path that nobody lists.
//!
//! Charged by the request; in a stream every message is one. The name of the model is all that is read of a message,
//! and all that is put in where it is an alias.

mod frames;
mod rename;

use super::{Reads, Spec};
use crate::refusal::Style;
use crate::usage::Shape;
#[cfg(test)]
pub(crate) use frames::message;
pub(crate) use frames::{Frames, Wrong};
pub(crate) use rename::Rename;

pub(super) const INFER: Spec = Spec {
    name: "kserve_grpc_infer",
    paths: &["/inference.GRPCInferenceService/ModelInfer"],
    method: Some("POST"),
    reads: Reads::Messages { is_stream: false },
    style: Style::Grpc,
    reply: Shape::Fixed,
};

pub(super) const STREAM_INFER: Spec = Spec {
    name: "kserve_grpc_stream",
    paths: &["/inference.GRPCInferenceService/ModelStreamInfer"],
    method: Some("POST"),
    reads: Reads::Messages { is_stream: true },
    style: Style::Grpc,
    reply: Shape::Fixed,
};
