//! OpenAI's API, as OpenAI, vLLM, llama.cpp and LiteLLM speak it.

pub(super) mod chat;
pub(super) mod completions;
pub(super) mod embeddings;
pub(super) mod media;
pub(super) mod models;
pub(super) mod responses;
