//! Prometheus' text format, as far as the tests look into it.

use std::collections::BTreeMap;

/// One scrape.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    samples: Vec<Sample>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

impl Metrics {
    /// Reads a scrape; lines that are no samples are left out.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self { samples: text.lines().filter_map(parse_line).collect() }
    }

    /// The samples of `name` that bear all of `labels`.
    pub fn matching<'a>(&'a self, name: &'a str, labels: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            let bears = |(label, value): &(&str, &str)| sample.labels.get(*label).is_some_and(|v| v == value);
            sample.name == name && labels.iter().all(bears)
        })
    }

    /// The sum of a counter's or gauge's matching samples; 0 when there are none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        // Counts in tests are far below 2^53.
        self.matching(name, labels).map(|sample| sample.value).sum::<f64>() as u64
    }
}

fn parse_line(line: &str) -> Option<Sample> {
    if line.starts_with('#') {
        return None;
    }
    let (series, value) = match line.rfind('}') {
        Some(end) => (&line[..=end], &line[end + 1..]),
        None => line.split_once(' ')?,
    };
    let value = value.split_whitespace().next()?.parse().ok()?;
    let (name, labels) = match series.split_once('{') {
        Some((name, rest)) => (name, parse_labels(rest.strip_suffix('}')?)?),
        None => (series, BTreeMap::new()),
    };
    Some(Sample { name: name.to_owned(), labels, value })
}

fn parse_labels(mut rest: &str) -> Option<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    while let Some((name, after)) = rest.split_once("=\"") {
        let end = closing_quote(after)?;
        labels.insert(name.trim_start_matches(',').trim().to_owned(), after[..end].replace("\\\"", "\""));
        rest = &after[end + 1..];
    }
    Some(labels)
}

/// The first quote that no backslash escapes.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(index, c)| {
        let closes = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        closes.then_some(index)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_over_the_labels_that_are_not_named() {
        let metrics = Metrics::parse(
            "# HELP t x\nt{tenant=\"a\",kind=\"input\"} 3\nt{tenant=\"a\",kind=\"output\"} 4\nt{tenant=\"b\"} 9\nplain 2\n",
        );
        assert_eq!(metrics.sum("t", &[("tenant", "a")]), 7);
        assert_eq!(metrics.sum("plain", &[]), 2);
        assert_eq!(metrics.sum("absent", &[]), 0);
    }

    #[test]
    fn a_label_may_contain_quotes_and_braces() {
        let metrics = Metrics::parse("t{name=\"a \\\"b\\\" {c}\",other=\"d\"} 1\n");
        assert_eq!(metrics.sum("t", &[("name", "a \"b\" {c}"), ("other", "d")]), 1);
    }
}
