//! A real LiteLLM proxy in front of a model server.

use super::MODEL;
use crate::folder::Folder;
use crate::process::Component;
use crate::{document, paths, ports};
use anyhow::Result;
use serde_json::{Value, json};
use std::process::Command;
use std::time::Duration;

/// It imports for half a minute.
const STARTS_WITHIN: Duration = Duration::from_secs(180);

/// It starts with no other way in. Envoy sends this along; clients never see it.
pub const MASTER_KEY: &str = "sk-litellm-behind-sluice";

/// Has Envoy put it in the place of the client's key.
pub fn send_master_key(bootstrap: &mut Value) {
    let manager = &mut bootstrap["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0];
    let host = &mut manager["typed_config"]["route_config"]["virtual_hosts"][0];
    let key = json!({"key": "authorization", "value": format!("Bearer {MASTER_KEY}")});
    host["request_headers_to_add"] = json!([{"header": key, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]);
}

pub struct LiteLlm {
    _process: Component,
    port: u16,
}

impl LiteLlm {
    /// # Errors
    /// When it is not installed (`./justw setup full`) or does not start.
    pub async fn start(folder: &Folder, model_server: &str) -> Result<Self> {
        let config = json!({"model_list": [{
            "model_name": MODEL,
            "litellm_params": {
                "model": format!("openai/{MODEL}"), "api_base": format!("{model_server}/v1"), "api_key": "none",
            },
        }]});
        Self::configured(folder, &config).await
    }

    /// Starts it with this configuration.
    ///
    /// # Errors
    /// As [`LiteLlm::start`].
    pub async fn configured(folder: &Folder, config: &Value) -> Result<Self> {
        let port = ports::free()?;
        folder.write("litellm.yaml", &document::text(config))?;
        let mut command = Command::new(paths::tool("venv-full/bin/litellm")?);
        command
            .current_dir(folder.path())
            .args(["--config", "litellm.yaml", "--host", "127.0.0.1", "--telemetry", "False"])
            .args(["--port", &port.to_string()])
            .env("LITELLM_LOCAL_MODEL_COST_MAP", "True")
            .env("LITELLM_MASTER_KEY", MASTER_KEY);
        let mut process = Component::start("litellm", command, &folder.path().join("litellm.log"))?;
        let (alive, http) = (format!("http://127.0.0.1:{port}/health/liveliness"), reqwest::Client::new());
        process
            .ready(STARTS_WITHIN, || {
                let request = http.get(&alive);
                async move { request.send().await.is_ok_and(|reply| reply.status().is_success()) }
            })
            .await?;
        Ok(Self { _process: process, port })
    }

    /// Such as `http://127.0.0.1:21000`.
    #[must_use]
    pub fn base(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}
