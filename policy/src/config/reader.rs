//! Parse, don't validate: a cursor over a YAML or JSON document that remembers where it is and collects *every*
//! error with its path, so that an operator mends a file in one go.

use crate::units::NAME_BYTES_MAX;
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::rc::Rc;

/// One thing wrong with a configuration: where, what, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct ConfigError {
    /// Like `pools[1].capacity.concurrent`; `.` for the document itself.
    pub path: String,
    pub problem: String,
}

/// All that is wrong with a configuration, in the order of the document. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Where the errors of one document gather.
#[derive(Clone, Default)]
struct Sink(Rc<RefCell<Vec<ConfigError>>>);

/// A mapping in the document. Every reader method notes the name it looked for; [`Section::finish`] reports the
/// names that nobody asked for, which are mostly misspellings.
pub struct Section<'a> {
    path: String,
    fields: Option<&'a Map<String, Value>>,
    known: RefCell<BTreeSet<&'static str>>,
    sink: Sink,
}

/// Reads a whole document with `read`, and returns its result only if nothing at all was wrong.
///
/// # Errors
/// Every problem that `read` met, each with its path.
pub fn read_document<T>(document: &Value, read: impl FnOnce(&Section<'_>) -> Option<T>) -> Result<T, ConfigErrors> {
    let sink = Sink::default();
    let root = Section::new(String::new(), Some(document), sink.clone());
    let result = read(&root);
    root.finish();
    let errors = sink.0.take();
    match result {
        Some(value) if errors.is_empty() => Ok(value),
        _ if errors.is_empty() => {
            Err(ConfigErrors(vec![ConfigError { path: ".".to_owned(), problem: "is incomplete".to_owned() }]))
        }
        _ => Err(ConfigErrors(errors)),
    }
}

impl<'a> Section<'a> {
    fn new(path: String, value: Option<&'a Value>, sink: Sink) -> Self {
        let fields = match value {
            None | Some(Value::Null) => None,
            Some(Value::Object(fields)) => Some(fields),
            Some(other) => {
                report(&sink, &path, format!("must be a mapping, found {}", describe(other)));
                None
            }
        };
        Self { path, fields, known: RefCell::default(), sink }
    }

    /// Reports the fields that no reader asked for. Call it last.
    pub fn finish(&self) {
        let known = self.known.borrow();
        for name in self.fields.into_iter().flat_map(Map::keys) {
            if !known.contains(name.as_str()) {
                let allowed: Vec<&str> = known.iter().copied().collect();
                report(
                    &self.sink,
                    &self.path_of(name),
                    format!("is not a known field here; known are {}", allowed.join(", ")),
                );
            }
        }
    }

    /// The path of this section, for errors that concern it as a whole.
    #[must_use]
    pub fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Records an error about the field `name`.
    pub fn error(&self, name: &str, problem: impl Into<String>) {
        report(&self.sink, &self.path_of(name), problem.into());
    }

    /// Whether the document has the field, and not as null.
    #[must_use]
    pub fn has(&self, name: &'static str) -> bool {
        self.raw(name).is_some()
    }

    /// A mapping inside this one. Absent reads like empty, so that defaults live in one place.
    #[must_use]
    pub fn section(&self, name: &'static str) -> Section<'a> {
        Section::new(self.path_of(name), self.raw(name), self.sink.clone())
    }

    /// Reads every element of a list of mappings; absent is an empty list.
    pub fn each<T>(&self, name: &'static str, mut read: impl FnMut(&Section<'a>) -> Option<T>) -> Vec<T> {
        let path = self.path_of(name);
        self.list(name)
            .iter()
            .enumerate()
            .filter_map(|(index, element)| {
                let at = format!("{path}[{index}]");
                if element.is_null() {
                    report(&self.sink, &at, "must be a mapping, found nothing".to_owned());
                    return None;
                }
                let section = Section::new(at, Some(element), self.sink.clone());
                let result = read(&section);
                section.finish();
                result
            })
            .collect()
    }

    /// An integer in a range, in the unit that the field's name tells.
    #[must_use]
    pub fn integer(&self, name: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.raw(name)?;
        match value.as_u64() {
            Some(number) if range.contains(&number) => Some(number),
            _ => {
                let (low, high) = (range.start(), range.end());
                let found = describe(value);
                self.error(name, format!("must be an integer from {low} to {high}, found {found}"));
                None
            }
        }
    }

    #[must_use]
    pub fn boolean(&self, name: &'static str) -> Option<bool> {
        let value = self.raw(name)?;
        let flag = value.as_bool();
        if flag.is_none() {
            self.error(name, format!("must be true or false, found {}", describe(value)));
        }
        flag
    }

    /// A text that is not empty.
    #[must_use]
    pub fn text(&self, name: &'static str) -> Option<&'a str> {
        let value = self.raw(name)?;
        match value.as_str() {
            Some(text) if !text.is_empty() => Some(text),
            _ => {
                self.error(name, format!("must be a text that is not empty, found {}", describe(value)));
                None
            }
        }
    }

    /// A name that may stand in a label, a header and a Redis key: 1 to 63 of `a-z A-Z 0-9 . _ -`, beginning with
    /// a letter or digit.
    #[must_use]
    pub fn name(&self, name: &'static str) -> Option<&'a str> {
        let text = self.text(name)?;
        if is_name(text) {
            return Some(text);
        }
        self.error(
            name,
            format!(
                "must be 1 to 63 of a-z, A-Z, 0-9, '.', '_', '-', beginning with a letter or digit, found {text:?}"
            ),
        );
        None
    }

    /// A list of texts; absent is an empty list.
    #[must_use]
    pub fn texts(&self, name: &'static str) -> Vec<&'a str> {
        self.elements(name, |path, element| match element.as_str() {
            Some(text) if !text.is_empty() => Some(text),
            _ => {
                let problem = format!("must be a text that is not empty, found {}", describe(element));
                report(&self.sink, path, problem);
                None
            }
        })
    }

    /// A model's name: whatever its server calls it, of 1 to 256 bytes.
    #[must_use]
    pub fn model_name(&self, name: &'static str) -> Option<&'a str> {
        let value = self.raw(name)?;
        read_model_name(&self.sink, &self.path_of(name), value)
    }

    /// A list of models' names; absent is an empty list.
    #[must_use]
    pub fn model_names(&self, name: &'static str) -> Vec<&'a str> {
        self.elements(name, |path, element| read_model_name(&self.sink, path, element))
    }

    fn elements<T>(&self, name: &'static str, mut read: impl FnMut(&str, &'a Value) -> Option<T>) -> Vec<T> {
        let path = self.path_of(name);
        let elements = self.list(name).iter().enumerate();
        elements.filter_map(|(index, element)| read(&format!("{path}[{index}]"), element)).collect()
    }

    /// One of the words in `table`.
    #[must_use]
    pub fn choice<T: Copy>(&self, name: &'static str, table: &[(&str, T)]) -> Option<T> {
        let value = self.raw(name)?;
        let found = value.as_str().and_then(|word| table.iter().find(|(known, _)| *known == word));
        if found.is_none() {
            let words: Vec<&str> = table.iter().map(|(word, _)| *word).collect();
            self.error(name, format!("must be one of {}, found {}", words.join(", "), describe(value)));
        }
        found.map(|(_, choice)| *choice)
    }

    /// Passes a value on, and reports the field as missing when there is none. A field that is present but wrong
    /// has been reported already.
    pub fn required<T>(&self, name: &'static str, value: Option<T>) -> Option<T> {
        if value.is_none() && !self.has(name) {
            self.error(name, "is required");
        }
        value
    }

    /// The raw value, for the few fields whose shape the methods above cannot tell.
    #[must_use]
    pub fn raw(&self, name: &'static str) -> Option<&'a Value> {
        self.known.borrow_mut().insert(name);
        self.fields?.get(name).filter(|value| !value.is_null())
    }

    fn list(&self, name: &'static str) -> &'a [Value] {
        match self.raw(name) {
            None => &[],
            Some(Value::Array(elements)) => elements,
            Some(other) => {
                self.error(name, format!("must be a list, found {}", describe(other)));
                &[]
            }
        }
    }
}

/// Whether a text may name a tenant, pool, tier or key.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    text.len() <= 63
        && bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

fn read_model_name<'a>(sink: &Sink, path: &str, value: &'a Value) -> Option<&'a str> {
    let name = value.as_str().filter(|name| (1..=NAME_BYTES_MAX).contains(&name.len()));
    if name.is_none() {
        report(sink, path, format!("must be a text of 1 to {NAME_BYTES_MAX} bytes, found {}", describe(value)));
    }
    name
}

fn report(sink: &Sink, path: &str, problem: String) {
    let path = if path.is_empty() { "." } else { path }.to_owned();
    sink.0.borrow_mut().push(ConfigError { path, problem });
}

/// A value as an error message shows it: short, and with its type where that is the point.
fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(flag) => format!("{flag}"),
        Value::Number(number) => format!("{number}"),
        Value::String(text) if text.chars().count() <= 40 => format!("the text {text:?}"),
        Value::String(_) => "a long text".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a mapping".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn problems(document: &Value, read: impl FnOnce(&Section<'_>) -> Option<()>) -> Vec<String> {
        match read_document(document, read) {
            Ok(()) => Vec::new(),
            Err(errors) => errors.0.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn every_error_is_reported_at_once_with_its_path() {
        let document = json!({"pools": [{"size": 0}, {"size": "two", "sise": 3}], "mode": "maybe"});
        let found = problems(&document, |root| {
            root.each("pools", |pool| pool.integer("size", 1..=9));
            root.choice("mode", &[("on", ()), ("off", ())])
        });
        assert_eq!(
            found,
            [
                "pools[0].size: must be an integer from 1 to 9, found 0",
                "pools[1].size: must be an integer from 1 to 9, found the text \"two\"",
                "pools[1].sise: is not a known field here; known are size",
                "mode: must be one of on, off, found the text \"maybe\"",
            ]
        );
    }

    #[test]
    fn a_missing_field_is_reported_once_and_a_wrong_one_is_not_called_missing() {
        let document = json!({"size": -3});
        let found = problems(&document, |root| {
            root.required("name", root.name("name"));
            root.required("size", root.integer("size", 0..=9)).map(drop)
        });
        assert_eq!(found, ["name: is required", "size: must be an integer from 0 to 9, found -3"]);
    }

    #[test]
    fn names_fit_labels_headers_and_redis_keys() {
        for good in ["a", "dept-a", "A.b_c-9"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "-a", "a b", "a:b", "a}b", "é", &"a".repeat(64)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
