//! What a pool's model server does when its client leaves.

use super::reader::Section;
use crate::units::Millis;
use serde_json::Value;

/// How long a server works on after its client has left, or Envoy has given the call up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AfterAbort {
    /// It stops at once: vLLM, and llama.cpp in streams.
    #[default]
    Cancels,
    /// It stops within so long.
    Grace(Millis),
    /// It works to the end, which is no later than so long after the call's start: Triton over HTTP, LiteLLM.
    RunsOn(Millis),
}

impl AfterAbort {
    /// Until when a call keeps its slot that started at `since` and was left `now`; `None` when it is free at once.
    #[must_use]
    pub fn keeps_until(self, since: Millis, now: Millis) -> Option<Millis> {
        let until = match self {
            AfterAbort::Cancels => now,
            AfterAbort::Grace(grace) => now.plus(grace),
            AfterAbort::RunsOn(span) => since.plus(span),
        };
        (until > now).then_some(until)
    }

    /// How long a call may take of which the longest stream takes `stream`.
    #[must_use]
    pub fn longest(self, stream: Millis) -> Millis {
        match self {
            AfterAbort::Cancels => stream,
            AfterAbort::Grace(grace) => stream.plus(grace),
            AfterAbort::RunsOn(span) => stream.max(span),
        }
    }
}

/// `on_abort` of a pool: for calls whose reply is a stream of events, and for those whose reply is a document.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnAbort {
    pub streams: AfterAbort,
    pub documents: AfterAbort,
}

impl OnAbort {
    #[must_use]
    pub fn of(self, is_stream: bool) -> AfterAbort {
        if is_stream { self.streams } else { self.documents }
    }

    /// How long a call of either kind may take of which the longest stream takes `stream`.
    #[must_use]
    pub fn longest(self, stream: Millis) -> Millis {
        self.streams.longest(stream).max(self.documents.longest(stream))
    }
}

/// A day: no call is longer.
const MOST_MS: u64 = 86_400_000;

/// Reads `on_abort`: `cancels`, `{grace_ms}`, `{runs_on_ms}`, or one of these for each of `streams` and `documents`.
pub(super) fn read(pool: &Section<'_>) -> OnAbort {
    let given = pool.raw("on_abort");
    if !given.is_some_and(|given| ["streams", "documents"].iter().any(|kind| given.get(kind).is_some())) {
        let both = read_one(pool, "on_abort");
        return OnAbort { streams: both, documents: both };
    }
    let section = pool.section("on_abort");
    let on_abort = OnAbort { streams: read_one(&section, "streams"), documents: read_one(&section, "documents") };
    section.finish();
    on_abort
}

fn read_one(section: &Section<'_>, field: &'static str) -> AfterAbort {
    match section.raw(field).and_then(Value::as_str) {
        Some("cancels") => {}
        Some(other) => {
            section.error(field, format!("must be cancels, {{grace_ms: N}} or {{runs_on_ms: N}}, found {other:?}"));
        }
        None => {
            let inner = section.section(field);
            let after = read_span(&inner);
            inner.finish();
            return after;
        }
    }
    AfterAbort::Cancels
}

fn read_span(section: &Section<'_>) -> AfterAbort {
    let grace = section.integer("grace_ms", 1..=MOST_MS).map(Millis);
    let span = section.integer("runs_on_ms", 1..=MOST_MS).map(Millis);
    if section.has("grace_ms") && section.has("runs_on_ms") {
        section.error("grace_ms", "and runs_on_ms exclude each other: keep one");
    }
    match (grace, span) {
        (_, Some(span)) => AfterAbort::RunsOn(span),
        (Some(grace), None) => AfterAbort::Grace(grace),
        (None, None) => AfterAbort::Cancels,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::reader::read_document;
    use serde_json::json;

    fn read_pool(on_abort: Value) -> Result<OnAbort, Vec<String>> {
        let document = json!({"on_abort": on_abort});
        let errors = |errors: crate::config::reader::ConfigErrors| errors.0.iter().map(ToString::to_string).collect();
        read_document(&document, |pool| Some(read(pool))).map_err(errors)
    }

    #[test]
    fn a_server_cancels_unless_something_else_is_said_of_streams_or_documents() {
        let (cancels, runs_on) = (AfterAbort::Cancels, AfterAbort::RunsOn(Millis(7)));
        let both = |after| Ok(OnAbort { streams: after, documents: after });
        assert_eq!(read_pool(Value::Null), both(cancels));
        assert_eq!(read_pool(json!("cancels")), both(cancels));
        assert_eq!(read_pool(json!({"grace_ms": 7})), both(AfterAbort::Grace(Millis(7))));
        assert_eq!(read_pool(json!({"runs_on_ms": 7})), both(runs_on));
        let apart = Ok(OnAbort { streams: cancels, documents: runs_on });
        assert_eq!(read_pool(json!({"streams": "cancels", "documents": {"runs_on_ms": 7}})), apart);
        assert_eq!(read_pool(json!({"documents": {"runs_on_ms": 7}})), apart);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_path() {
        let problem = |on_abort| read_pool(on_abort).unwrap_err().concat();
        assert!(problem(json!("runs_on")).starts_with("on_abort: must be cancels"));
        assert!(problem(json!({"streams": "no"})).starts_with("on_abort.streams: must be cancels"));
        assert!(problem(json!({"grace_ms": 1, "runs_on_ms": 1})).starts_with("on_abort.grace_ms: and runs_on_ms"));
        assert!(problem(json!({"documents": {"grace": 1}})).starts_with("on_abort.documents.grace: is not a known"));
        assert!(problem(json!({"grace_ms": 0})).starts_with("on_abort.grace_ms"));
        assert!(problem(json!(5)).starts_with("on_abort: must be a mapping"));
    }

    #[test]
    fn a_slot_is_kept_for_the_grace_or_as_long_as_the_call_may_run_from_its_start() {
        let (since, now) = (Millis(100), Millis(400));
        assert_eq!(AfterAbort::Cancels.keeps_until(since, now), None);
        assert_eq!(AfterAbort::Grace(Millis(50)).keeps_until(since, now), Some(Millis(450)));
        assert_eq!(AfterAbort::RunsOn(Millis(1_000)).keeps_until(since, now), Some(Millis(1_100)));
        assert_eq!(AfterAbort::RunsOn(Millis(300)).keeps_until(since, now), None, "it has run so long");
    }
}
