//! What known servers read beyond the API that they speak. A call is admitted to one model, on one server, for so many
//! sequences and at one tenant's cost. A field that could change any of that unseen is refused, unless it is null or
//! empty. `docs/DIALECTS.md` has this table for people.
//!
//! It cannot be complete, as servers learn new names: a route with `strict_fields` passes the API's own fields alone.

use super::raw::{Field, Use};

/// What a field would do that its call was not admitted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Harm {
    /// Another model answers, or an adapter of it.
    Model,
    /// A whole request, or parts of one, is nested where the filter does not look.
    Request,
    /// Another server or deployment is asked, or with other credentials.
    Server,
    /// Work is repeated, made up, taken out of turn or done for a prompt that is not weighed.
    Work,
    /// Usage is booked to other names or not at all, or the answer comes from another caller's call.
    Books,
}

impl Harm {
    /// As the end of a sentence that begins with the field's name.
    pub(super) fn problem(self) -> &'static str {
        match self {
            Harm::Model => "must be left out: a call is admitted to the one 'model' that it names",
            Harm::Request => "must be left out: what it holds is not read here, so the call could be another one",
            Harm::Server => "must be left out: where a call goes, and as whom, is not its caller's choice",
            Harm::Work => "must be left out: how often and in which turn a call is served is decided here",
            Harm::Books => "must be left out: what a call is booked on is not its caller's choice",
        }
    }
}

/// What one server reads. A name that ends in `*` is a beginning.
struct Server {
    #[cfg_attr(not(test), expect(dead_code, reason = "the documents have a row of this name"))]
    name: &'static str,
    fields: &'static [(Harm, &'static [&'static str])],
    /// Taken out of every request, in lower case and with `-` for `_`.
    headers: &'static [&'static str],
}

const SERVERS: &[Server] = &[
    Server {
        name: "LiteLLM",
        fields: &[
            (Harm::Request, &["extra_body", "router_settings_override", "user_config", "litellm_*", "_litellm_*"]),
            (
                Harm::Model,
                &[
                    "fallbacks",
                    "context_window_fallbacks",
                    "content_policy_fallbacks",
                    "context_window_fallback_dict",
                    "model_list",
                    "model_alias_map",
                    "model_info",
                    "base_model",
                    "silent_model",
                    "prompt_id",
                ],
            ),
            (
                Harm::Server,
                &[
                    "api_base",
                    "base_url",
                    "api_key",
                    "organization",
                    "custom_llm_provider",
                    "deployment_id",
                    "specific_deployment",
                    "model_id",
                    "region_name",
                    "allowed_model_region",
                    "routing_strategy",
                    "enable_tag_filtering",
                    "use_litellm_proxy",
                    "ssl_verify",
                    "headers",
                    "extra_headers",
                    "extra_query",
                    "provider_specific_header",
                    "aws_*",
                    "azure_*",
                    "vertex_*",
                    "s3_*",
                    "gcs_*",
                    "sagemaker_base_url",
                    "deployment_url",
                ],
            ),
            (
                Harm::Work,
                &[
                    "num_retries",
                    "max_retries",
                    "max_fallbacks",
                    "retry_policy",
                    "retry_strategy",
                    "model_group_retry_policy",
                    "cooldown_time",
                    "fastest_response",
                    "max_agentic_loops",
                    "mock_*",
                ],
            ),
            (
                Harm::Books,
                &[
                    "tags",
                    "cache",
                    "caching",
                    "cache_key",
                    "preset_cache_key",
                    "no-log",
                    "turn_off_message_logging",
                    "callbacks",
                    "success_callback",
                    "failure_callback",
                    "service_callback",
                    "logger_fn",
                    "proxy_server_request",
                    "input_cost_per_*",
                    "output_cost_per_*",
                    "langfuse_*",
                    "langsmith_*",
                ],
            ),
        ],
        headers: &["x-litellm-*", "litellm-*"],
    },
    Server {
        name: "vLLM",
        fields: &[
            (Harm::Request, &["vllm_xargs"]),
            (Harm::Server, &["kv_transfer_params", "ec_transfer_params"]),
            (Harm::Work, &["prompt_embeds"]),
        ],
        headers: &["x-data-parallel-rank"],
    },
    Server {
        name: "SGLang",
        fields: &[
            (Harm::Request, &["custom_logit_processor"]),
            (Harm::Model, &["lora_path"]),
            (
                Harm::Server,
                &["bootstrap_*", "routed_dp_rank", "data_parallel_rank", "disagg_prefill_dp_rank", "ngram_corpus_id"],
            ),
            (Harm::Books, &["rid", "session_params", "custom_labels"]),
        ],
        headers: &["x-data-parallel-rank"],
    },
    Server { name: "llama.cpp", fields: &[(Harm::Model, &["lora"]), (Harm::Server, &["id_slot"])], headers: &[] },
    Server {
        name: "OpenRouter",
        fields: &[
            (Harm::Model, &["models", "preset", "route"]),
            (Harm::Server, &["provider"]),
            (Harm::Work, &["plugins"]),
        ],
        headers: &[],
    },
    Server { name: "Gateway API inference extension, llm-d", fields: &[], headers: &["x-gateway-*", "x-prefiller-*"] },
];

/// What LiteLLM takes from `metadata`, which is the caller's own to every other server: where a call goes by its tags,
/// and what it is booked on.
pub(super) const LABELS: &[Field] = &[
    ("tags", Use::Refuse(Harm::Books)),
    ("spend_logs_metadata", Use::Refuse(Harm::Books)),
    ("user_api_key*", Use::Refuse(Harm::Books)),
    ("litellm_*", Use::Refuse(Harm::Books)),
    ("model_group", Use::Refuse(Harm::Model)),
    ("model_info", Use::Refuse(Harm::Model)),
    ("api_base", Use::Refuse(Harm::Server)),
    ("base_url", Use::Refuse(Harm::Server)),
    ("api_key", Use::Refuse(Harm::Server)),
];

/// The entry of a field that some server reads and the API does not know.
pub(super) fn field(name: &str) -> Option<Field> {
    if name == "metadata" {
        return Some(("metadata", Use::Labels));
    }
    // vLLM's and SGLang's own queue: what is asked for there is the gateway's to say (`dialect/turn.rs`).
    if name == super::turn::NAME {
        return Some((super::turn::NAME, Use::Keep));
    }
    let each = SERVERS.iter().flat_map(|server| server.fields);
    each.flat_map(|(harm, names)| names.iter().map(move |pattern| (*pattern, Use::Refuse(*harm))))
        .find(|(pattern, _)| is_named(pattern, name))
}

/// Whether some server chooses by this header what the caller must not choose. `folded`: in lower case, with `-` for `_`.
pub(crate) fn steers(folded: &str) -> bool {
    SERVERS.iter().flat_map(|server| server.headers).any(|pattern| is_named(pattern, folded))
}

/// Whether a name is meant by an entry of a table.
pub(super) fn is_named(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |beginning| name.starts_with(beginning))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_have_every_name_of_the_table() {
        let document = include_str!("../../../docs/DIALECTS.md");
        let named = |name: &str| document.contains(&format!("`{name}`"));
        for server in SERVERS {
            assert!(document.contains(&format!("| {} |", server.name)), "{}", server.name);
            let fields = server.fields.iter().flat_map(|(_, names)| names.iter());
            for name in fields.chain(server.headers) {
                assert!(named(name), "{}: {name}", server.name);
            }
        }
        for (name, _) in LABELS {
            assert!(named(name), "{name}");
        }
    }

    #[test]
    fn names_are_lower_case_as_they_are_compared_and_none_shadows_another_of_its_server() {
        for server in SERVERS {
            let names: Vec<&str> = server.fields.iter().flat_map(|(_, names)| names.iter().copied()).collect();
            for name in &names {
                assert_eq!(name.to_ascii_lowercase(), *name);
                let others = names.iter().filter(|other| *other != name);
                assert!(others.clone().all(|other| !is_named(other, name.trim_end_matches('*'))), "{name}");
            }
        }
    }

    #[test]
    fn headers_that_steer_servers_are_known_and_others_are_left_alone() {
        for name in ["x-litellm-api-key", "x-litellm-tags", "x-data-parallel-rank", "x-gateway-destination-endpoint"] {
            assert!(steers(name), "{name}");
        }
        for name in ["x-request-id", "x-stainless-lang", "anthropic-beta", "user-agent", "x-litell"] {
            assert!(!steers(name), "{name}");
        }
    }
}
