//! The `gpu:` section of the configuration.

use hyper::Uri;
use sluice_policy::config::reader::Section;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

/// Exporters refresh their own cache every 1 to 30 s, so that asking much more often learns nothing.
const DEFAULT_INTERVAL_MS: u64 = 5_000;
const INTERVAL_MS: RangeInclusive<u64> = 100..=3_600_000;
/// One exporter serves one node, and the view keeps no more devices than this anyway.
const MAX_EXPORTERS: usize = 1_024;

/// Which exporters to scrape, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuSettings {
    pub interval: Duration,
    /// No two have the same node: a device's id is made of the node's name.
    pub exporters: Vec<Exporter>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exporter {
    /// The name that goes into labels. Not taken from the exporter's `Hostname`, which in Kubernetes is the name
    /// of the exporter's pod and changes with every restart.
    pub node: String,
    /// Always `http://` with a host.
    pub url: Uri,
}

impl Default for GpuSettings {
    fn default() -> Self {
        Self { interval: Duration::from_millis(DEFAULT_INTERVAL_MS), exporters: Vec::new() }
    }
}

impl GpuSettings {
    /// Reads the section, absent or not, and reports its unknown fields too: the caller need not `finish` it.
    pub fn read(section: &Section<'_>) -> Option<Self> {
        let interval_ms = section.integer("interval_ms", INTERVAL_MS);
        let exporters = section.each("exporters", read_exporter);
        refuse_repeated_nodes(section, &exporters);
        if exporters.len() > MAX_EXPORTERS {
            section.error("exporters", format!("must be at most {MAX_EXPORTERS}"));
        }
        section.finish();
        let interval = Duration::from_millis(interval_ms.unwrap_or(DEFAULT_INTERVAL_MS));
        Some(Self { interval, exporters })
    }
}

fn read_exporter(section: &Section<'_>) -> Option<Exporter> {
    let node = section.required("node", section.name("node"));
    let url = section.required("url", section.text("url")).and_then(|text| read_url(section, text));
    Some(Exporter { node: node?.to_owned(), url: url? })
}

/// Only plain HTTP for now. A user name in a URL would be logged and never sent, so it is refused.
fn read_url(section: &Section<'_>, text: &str) -> Option<Uri> {
    let url = text.parse::<Uri>().ok().filter(is_plain_http);
    if url.is_none() {
        section.error("url", "must be like http://host:9400/metrics, without a user name");
    }
    url
}

fn is_plain_http(url: &Uri) -> bool {
    let sound = url.authority().is_some_and(|authority| {
        // `port` is also absent where there is one that no port can be.
        let port_is_sound = authority.port().is_some() || authority.as_str() == authority.host();
        !authority.host().is_empty() && port_is_sound && !authority.as_str().contains('@')
    });
    sound && url.scheme_str() == Some("http")
}

fn refuse_repeated_nodes(section: &Section<'_>, exporters: &[Exporter]) {
    let mut seen = BTreeSet::new();
    for exporter in exporters {
        if !seen.insert(exporter.node.as_str()) {
            section.error("exporters", format!("names the node {:?} twice", exporter.node));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use sluice_policy::config::reader::read_document;

    fn read(gpu: &Value) -> Result<GpuSettings, Vec<String>> {
        let document = json!({ "gpu": gpu });
        read_document(&document, |root| GpuSettings::read(&root.section("gpu")))
            .map_err(|errors| errors.0.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn an_absent_section_means_no_exporters_and_the_defaults() {
        assert_eq!(read(&Value::Null), Ok(GpuSettings::default()));
    }

    #[test]
    fn a_full_section_is_read() {
        let settings = read(&json!({
            "interval_ms": 250,
            "exporters": [{"node": "worker-01", "url": "http://127.0.0.1:9400/metrics"}],
        }))
        .unwrap();
        assert_eq!(settings.interval, Duration::from_millis(250));
        assert_eq!(settings.exporters[0].node, "worker-01");
        assert_eq!(settings.exporters[0].url.path(), "/metrics");
    }

    #[test]
    fn every_error_of_the_section_is_reported_at_once() {
        let errors = read(&json!({
            "interval_ms": 5,
            "exportres": [],
            "exporters": [
                {"node": "a", "url": "https://a/metrics"},
                {"node": "b", "url": "http://me:secret@b/metrics"},
                {"node": "bad name", "url": "http://c/metrics"},
                {"url": "http://d:94000/metrics"},
                {"node": "e", "url": "http://e/metrics"},
                {"node": "e", "url": "http://f/metrics"},
            ],
        }))
        .unwrap_err();
        let wrong_url = "must be like http://host:9400/metrics, without a user name";
        assert_eq!(
            errors,
            [
                "gpu.interval_ms: must be an integer from 100 to 3600000, found 5".to_owned(),
                format!("gpu.exporters[0].url: {wrong_url}"),
                format!("gpu.exporters[1].url: {wrong_url}"),
                "gpu.exporters[2].node: must be 1 to 63 of a-z, A-Z, 0-9, '.', '_', '-', beginning with a \
                 letter or digit, found \"bad name\""
                    .to_owned(),
                "gpu.exporters[3].node: is required".to_owned(),
                format!("gpu.exporters[3].url: {wrong_url}"),
                "gpu.exporters: names the node \"e\" twice".to_owned(),
                "gpu.exportres: is not a known field here; known are exporters, interval_ms".to_owned(),
            ]
        );
    }
}
