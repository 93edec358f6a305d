//! The list of models, as OpenAI's and as Anthropic's clients read it. The service answers it: what a model server
//! would say is neither all that the tenant may use nor only that.

use crate::dialect::{Reads, Spec};
use crate::refusal::Style;
use crate::usage::Shape;
use serde_json::{Value, json};
use sluice_policy::units::ModelName;

pub(in crate::dialect) const SPEC: Spec = Spec {
    name: "openai_models",
    paths: &["/v1/models", "/v1/models/{model}"],
    method: Some("GET"),
    query: &[],
    reads: Reads::Models,
    style: Style::OpenAi,
    reply: Shape::Fixed,
};

/// Models have no date here; clients want one.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// The body of a list, or of the one model that was asked for.
pub(crate) fn body(models: &[ModelName], only: Option<&ModelName>, style: Style) -> Vec<u8> {
    let document = match (only, style) {
        (Some(model), _) => entry(model, style),
        (None, Style::Anthropic) => json!({
            "data": models.iter().map(|model| entry(model, style)).collect::<Vec<_>>(),
            "has_more": false,
            "first_id": models.first(),
            "last_id": models.last(),
        }),
        (None, _) => json!({
            "object": "list",
            "data": models.iter().map(|model| entry(model, style)).collect::<Vec<_>>(),
        }),
    };
    serde_json::to_vec(&document).unwrap_or_default()
}

fn entry(model: &ModelName, style: Style) -> Value {
    match style {
        Style::Anthropic => json!({"type": "model", "id": model, "display_name": model, "created_at": CREATED}),
        Style::OpenAi | Style::KServe | Style::Grpc | Style::Plain => {
            json!({"id": model, "object": "model", "created": 0, "owned_by": "sluice"})
        }
    }
}
