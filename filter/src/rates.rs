//! The rate headers that OpenAI's clients know, and Anthropic's.

mod moment;

use crate::headers::HeaderEdit;
use crate::refusal::Style;
use moment::rfc3339;
use sluice_policy::units::Millis;
use sluice_policy::wire::{RateKind, RateStatus};

/// Headers for the limits that the service tells: of each kind the one that a client meets first. `now` is the wall
/// clock: Anthropic tells when a limit resets, where OpenAI tells after how long.
pub(crate) fn headers(rates: &[RateStatus], style: Style, now: Millis) -> Vec<(&'static str, String)> {
    let each = rates.iter().map(|rate| {
        let [limit, remaining, reset] = names(rate.kind, style);
        let resets = match style {
            Style::Anthropic => rfc3339(now.plus(rate.reset_ms)),
            Style::OpenAi | Style::KServe | Style::Grpc | Style::Plain => go_duration(rate.reset_ms),
        };
        [(limit, rate.limit.to_string()), (remaining, rate.remaining.to_string()), (reset, resets)]
    });
    each.flatten().collect()
}

/// The headers for limit, remaining and reset.
fn names(kind: RateKind, style: Style) -> [&'static str; 3] {
    match (kind, style) {
        (RateKind::Requests, Style::Anthropic) => [
            "anthropic-ratelimit-requests-limit",
            "anthropic-ratelimit-requests-remaining",
            "anthropic-ratelimit-requests-reset",
        ],
        (RateKind::Tokens, Style::Anthropic) => [
            "anthropic-ratelimit-tokens-limit",
            "anthropic-ratelimit-tokens-remaining",
            "anthropic-ratelimit-tokens-reset",
        ],
        (RateKind::Requests, _) => {
            ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"]
        }
        (RateKind::Tokens, _) => {
            ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"]
        }
    }
}

/// The same as edits of a reply.
pub(crate) fn edits(rates: &[RateStatus], style: Style, now: Millis) -> impl Iterator<Item = HeaderEdit> {
    headers(rates, style, now).into_iter().map(|(name, value)| HeaderEdit::Set(name, value))
}

/// A duration as Go prints it: `0s`, `250ms`, `1m3.5s`, `1h0m0s`.
fn go_duration(span: Millis) -> String {
    const MS_PER_S: u64 = 1000;
    let (seconds, ms) = (span.0 / MS_PER_S, span.0 % MS_PER_S);
    if seconds == 0 && ms > 0 {
        return format!("{ms}ms");
    }
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let fraction = format!(".{ms:03}");
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    match (hours, minutes) {
        (0, 0) => format!("{seconds}{fraction}s"),
        (0, _) => format!("{minutes}m{seconds}{fraction}s"),
        _ => format!("{hours}h{minutes}m{seconds}{fraction}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_read_as_go_prints_them() {
        for (ms, text) in [
            (0, "0s"),
            (1, "1ms"),
            (250, "250ms"),
            (1000, "1s"),
            (1500, "1.5s"),
            (1020, "1.02s"),
            (60_000, "1m0s"),
            (63_500, "1m3.5s"),
            (3_600_000, "1h0m0s"),
            (90_061_001, "25h1m1.001s"),
        ] {
            assert_eq!(go_duration(Millis(ms)), text);
        }
    }

    proptest! {
        #[test]
        fn a_duration_reads_back_as_the_same_time(ms in 0u64..1_000_000_000_000) {
            prop_assert_eq!(read_back(&go_duration(Millis(ms))), ms);
        }
    }

    /// A naive reader of the units that Go prints.
    fn read_back(text: &str) -> u64 {
        let mut total = 0.0;
        let mut number = String::new();
        let mut letters = text.chars().peekable();
        while let Some(letter) = letters.next() {
            match (letter, letters.peek()) {
                ('0'..='9' | '.', _) => {
                    number.push(letter);
                    continue;
                }
                ('m', Some('s')) => {
                    letters.next();
                    total += number.parse::<f64>().unwrap();
                }
                ('s', _) => total += number.parse::<f64>().unwrap() * 1000.0,
                ('m', _) => total += number.parse::<f64>().unwrap() * 60_000.0,
                _ => total += number.parse::<f64>().unwrap() * 3_600_000.0,
            }
            number.clear();
        }
        total.round() as u64
    }

    #[test]
    fn every_limit_that_the_service_tells_shows_under_its_kind() {
        let rate = |kind, limit, remaining| RateStatus { kind, limit, remaining, reset_ms: Millis(1500) };
        let rates = [rate(RateKind::Requests, 50, 3), rate(RateKind::Tokens, 6000, 0)];
        let shown = headers(&rates, Style::OpenAi, Millis::ZERO);
        assert_eq!(
            shown,
            [
                ("x-ratelimit-limit-requests", "50".to_owned()),
                ("x-ratelimit-remaining-requests", "3".to_owned()),
                ("x-ratelimit-reset-requests", "1.5s".to_owned()),
                ("x-ratelimit-limit-tokens", "6000".to_owned()),
                ("x-ratelimit-remaining-tokens", "0".to_owned()),
                ("x-ratelimit-reset-tokens", "1.5s".to_owned()),
            ]
        );
        assert!(headers(&[], Style::OpenAi, Millis::ZERO).is_empty());
        let shown = headers(&rates, Style::Anthropic, Millis(1_000_000_000_000));
        assert_eq!(
            shown.get(..3),
            Some(
                &[
                    ("anthropic-ratelimit-requests-limit", "50".to_owned()),
                    ("anthropic-ratelimit-requests-remaining", "3".to_owned()),
                    ("anthropic-ratelimit-requests-reset", "2001-09-09T01:46:41Z".to_owned()),
                ][..]
            )
        );
        assert_eq!(shown.len(), 6);
    }
}
