//! The sections `tenants` and `strangers`: what one worker holds for each of them before their calls go on.

use crate::holdings::{Amount, Limits};
use sluice_policy::config::reader::Section;
use sluice_policy::units::Millis;

/// A quarter of what all tenants may hold.
const TENANT_SHARE: u64 = 4;
/// A fleet's clients open a stream each when they start, and idle until they have something to ask.
const IDLE_STREAMS_DEFAULT: u64 = 128;
const COUNT_MAX: u64 = 1_000_000;
const BYTES_MAX: u64 = 1 << 40;
/// A known key is a stranger's for as long as the service takes to say so, which is milliseconds.
const IDLE_DEFAULT_MS: u64 = 5_000;
const IDLE_MAX_MS: u64 = 60_000;
/// An idle stream costs Envoy and the filter about 25 KB beside its headers.
const STREAMS_DEFAULT: u64 = 1024;
const HEADERS_DEFAULT_BYTES: u64 = 8 << 20;
/// Four addresses fill the budget of all.
const SOURCES_DEFAULT: u64 = 4;

pub(super) fn read(root: &Section<'_>, body_max_bytes: u64, paused_bytes: u64) -> (Limits, Millis) {
    let tenants = root.section("tenants");
    let share = (paused_bytes / TENANT_SHARE).max(body_max_bytes);
    let tenant_bytes = tenants.integer("body_bytes", 1..=BYTES_MAX).unwrap_or(share);
    if tenant_bytes < body_max_bytes {
        tenants.error("body_bytes", "must not be less than body.max_bytes, or no body of that length could pass");
    }
    let idle_streams = tenants.integer("idle_streams", 0..=COUNT_MAX).unwrap_or(IDLE_STREAMS_DEFAULT);
    tenants.finish();
    let strangers = root.section("strangers");
    let idle_ms = strangers.integer("idle_ms", 1..=IDLE_MAX_MS).unwrap_or(IDLE_DEFAULT_MS);
    // A first call of any length that is allowed must pass, as its caller may be no stranger at all.
    let bodies = SOURCES_DEFAULT.saturating_mul(body_max_bytes);
    let all = Amount { calls: STREAMS_DEFAULT, header_bytes: HEADERS_DEFAULT_BYTES, body_bytes: bodies };
    let all = read_amount(&strangers, all);
    let part = |whole: u64| (whole / SOURCES_DEFAULT).max(1);
    let one = Amount {
        calls: part(all.calls),
        header_bytes: part(all.header_bytes),
        body_bytes: part(all.body_bytes).max(body_max_bytes.min(all.body_bytes)),
    };
    let per_source = strangers.section("per_source");
    let source = read_amount(&per_source, one);
    per_source.finish();
    strangers.finish();
    let limits = Limits { paused_bytes, tenant_bytes, tenant_idle_streams: idle_streams, strangers: all, source };
    (limits, Millis(idle_ms))
}

fn read_amount(section: &Section<'_>, default: Amount) -> Amount {
    Amount {
        calls: section.integer("streams", 1..=COUNT_MAX).unwrap_or(default.calls),
        header_bytes: section.integer("header_bytes", 1..=BYTES_MAX).unwrap_or(default.header_bytes),
        body_bytes: section.integer("body_bytes", 1..=BYTES_MAX).unwrap_or(default.body_bytes),
    }
}
