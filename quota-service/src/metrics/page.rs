//! Prometheus' text format, for series whose numbers lie with what they count and not in a registry.

use std::fmt::Write as _;

/// One metric, as its page introduces it.
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) kind: Kind,
}

#[derive(Clone, Copy)]
pub(super) enum Kind {
    Counter,
    Gauge,
}

impl Family {
    /// Adds the family to a page, unless it has no series: each has its labels and its number.
    pub(super) fn write<'a, L>(&self, page: &mut String, series: impl IntoIterator<Item = (L, u64)>)
    where
        L: IntoIterator<Item = (&'a str, &'a str)>,
    {
        let mut series = series.into_iter().peekable();
        if series.peek().is_none() {
            return;
        }
        let (name, help) = (self.name, self.help);
        let kind = match self.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        // Writing to a text cannot fail.
        let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, number) in series {
            page.push_str(name);
            for (place, (label, value)) in labels.into_iter().enumerate() {
                page.push(if place == 0 { '{' } else { ',' });
                let _ = write!(page, "{label}=\"");
                escape(page, value);
                page.push('"');
            }
            let _ = writeln!(page, "}} {number}");
        }
    }
}

fn escape(page: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => page.push_str("\\\\"),
            '"' => page.push_str("\\\""),
            '\n' => page.push_str("\\n"),
            c => page.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_introduced_once_and_its_labels_are_escaped() {
        let family = Family { name: "n", help: "What it is.", kind: Kind::Gauge };
        let mut page = String::new();
        family.write(&mut page, [([("a", "x\"y\\z\n")], 1), ([("a", "")], 2)]);
        assert_eq!(page, "# HELP n What it is.\n# TYPE n gauge\nn{a=\"x\\\"y\\\\z\\n\"} 1\nn{a=\"\"} 2\n");
    }

    #[test]
    fn a_family_without_series_is_not_on_the_page() {
        let mut page = String::new();
        Family { name: "n", help: "", kind: Kind::Counter }.write(&mut page, Vec::<([(&str, &str); 1], u64)>::new());
        assert_eq!(page, "");
    }
}
