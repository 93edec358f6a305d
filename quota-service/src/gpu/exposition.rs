//! A lenient reader of the Prometheus text format: a bad line costs one sample and is counted, never the scrape.
//!
//! Our own, because the crates that parse this format either refuse the whole text at the first bad line or, as
//! prometheus-parse 0.2, cut labels at every `,`, `=` and `}` without looking for quotes, know no escapes, count
//! nothing and bound nothing. Only what a gauge needs is here: no histograms, no types, no help texts.

use std::borrow::Cow;

/// A sample with two dozen labels of Kubernetes size stays far below this.
const MAX_LINE_BYTES: usize = 64 * 1024;
/// Exporters that copy pod labels reach a few dozen.
const MAX_LABELS: usize = 128;

/// One line `name{label="value",…} value`. The value may be NaN or infinite.
#[derive(Debug, PartialEq)]
pub(super) struct Sample<'a> {
    pub name: &'a str,
    pub value: f64,
    labels: Vec<(&'a str, Cow<'a, str>)>,
}

impl Sample<'_> {
    /// The label's value; empty where it is absent, which is the same thing in Prometheus.
    pub(super) fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value.as_ref())
    }
}

/// Hands every sample of a text to `each`, in order, and returns the number of bad lines: those that are neither
/// blank, nor a comment, nor a sample.
pub(super) fn read<'a>(text: &'a [u8], mut each: impl FnMut(Sample<'a>)) -> u64 {
    let mut bad_lines = 0;
    for line in text.split(|byte| *byte == b'\n') {
        match read_line(line) {
            Line::Nothing => {}
            Line::Sample(sample) => each(sample),
            Line::Bad => bad_lines += 1,
        }
    }
    bad_lines
}

enum Line<'a> {
    Nothing,
    Sample(Sample<'a>),
    Bad,
}

fn read_line(line: &[u8]) -> Line<'_> {
    let line = line.trim_ascii();
    if line.is_empty() || line.starts_with(b"#") {
        return Line::Nothing;
    }
    if line.len() > MAX_LINE_BYTES {
        return Line::Bad;
    }
    str::from_utf8(line).ok().and_then(read_sample).map_or(Line::Bad, Line::Sample)
}

fn read_sample(line: &str) -> Option<Sample<'_>> {
    let (name, rest) = take_name(line)?;
    let (labels, rest) = match rest.trim_ascii_start().strip_prefix('{') {
        Some(inside) => take_labels(inside)?,
        None if rest.starts_with([' ', '\t']) => (Vec::new(), rest),
        None => return None,
    };
    Some(Sample { name, value: read_value(rest)?, labels })
}

/// A metric's or a label's name and what follows it.
fn take_name(text: &str) -> Option<(&str, &str)> {
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | ':');
    let end = text.find(|letter| !allowed(letter)).unwrap_or(text.len());
    let (name, rest) = text.split_at_checked(end)?;
    let sound = name.starts_with(|first: char| !first.is_ascii_digit());
    sound.then_some((name, rest))
}

type Labels<'a> = Vec<(&'a str, Cow<'a, str>)>;

/// The labels after `{`, and what follows their `}`. A comma after the last one is allowed, as it is in the
/// format.
fn take_labels(mut rest: &str) -> Option<(Labels<'_>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_ascii_start();
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        if labels.len() == MAX_LABELS {
            return None;
        }
        let (name, after) = take_name(rest)?;
        let after = after.trim_ascii_start().strip_prefix('=')?;
        let (value, after) = take_quoted(after.trim_ascii_start().strip_prefix('"')?)?;
        labels.push((name, value));
        rest = after.trim_ascii_start();
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None if rest.starts_with('}') => {}
            None => return None,
        }
    }
}

/// The text up to the closing quote, unescaped, and what follows the quote.
fn take_quoted(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let mut escaped = false;
    for (at, letter) in text.char_indices() {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => {
                let (inside, rest) = text.split_at_checked(at)?;
                return Some((unescape(inside), rest.strip_prefix('"')?));
            }
            _ => {}
        }
    }
    None
}

/// `\\`, `\"` and `\n` are the escapes of the format; any other pair stands for itself.
fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('\\') {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (letter, if letter == '\\' { letters.next() } else { None }) {
            ('\\', Some('n')) => plain.push('\n'),
            ('\\', Some(same @ ('\\' | '"'))) => plain.push(same),
            (first, second) => plain.extend([Some(first), second].into_iter().flatten()),
        }
    }
    Cow::Owned(plain)
}

/// The value; after it a timestamp may stand, and an OpenMetrics exemplar behind `#`. Both are checked no further
/// than that they are not part of a sentence.
fn read_value(text: &str) -> Option<f64> {
    let mut words = text.split_ascii_whitespace();
    let value = words.next()?.parse().ok()?;
    let mut next = words.next();
    if next.is_some_and(|word| word.parse::<f64>().is_ok()) {
        next = words.next();
    }
    next.is_none_or(|word| word.starts_with('#')).then_some(value)
}

#[cfg(test)]
mod tests;
