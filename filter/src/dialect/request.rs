//! Whatever else somebody has configured a route for: its pool is the route's, its charge is by the request, and its
//! body is nobody's business.

use super::{Reads, Spec};
use crate::refusal::Style;
use crate::usage::Shape;

pub(super) const SPEC: Spec = Spec {
    name: "request",
    paths: &[],
    method: None,
    query: &[],
    reads: Reads::Length,
    style: Style::Plain,
    reply: Shape::Fixed,
};
