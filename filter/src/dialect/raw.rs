//! The known top-level fields of a JSON object as the client wrote them, each at most once.

use super::Fault;
use super::weigh::{Tally, Weigh};
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

/// What a dialect does with a field that it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Its text is kept.
    Keep,
    /// Elements and strings are counted as messages.
    Weigh,
    /// A text, token ids, or a list of either.
    Prompt,
}

/// A field that a dialect knows.
pub(super) type Field = (&'static str, Use);

/// The kept fields of one object, and the weight of its prompt.
pub(super) struct Fields<'de> {
    kept: Vec<(&'static str, &'de str)>,
    pub(super) prompt: Tally,
}

impl<'de> Fields<'de> {
    /// The JSON text of a field; `None` when it is absent or null.
    pub(super) fn get(&self, name: &str) -> Option<&'de str> {
        self.raw(name).filter(|text| *text != "null")
    }

    /// The JSON text of a field, null included.
    pub(super) fn raw(&self, name: &str) -> Option<&'de str> {
        self.kept.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
    }
}

/// Fields by which proxies let a call name further models, to be asked if the first one fails: LiteLLM's, and
/// OpenRouter's `models`. A call is admitted to one model, and charged for that one.
const OTHER_MODELS: &[Field] = &[
    ("fallbacks", Use::Keep),
    ("context_window_fallbacks", Use::Keep),
    ("content_policy_fallbacks", Use::Keep),
    ("models", Use::Keep),
];

/// Reads a body that names its model, as [`read`] does, and refuses one that names others beside it.
///
/// # Errors
/// The first thing wrong.
pub(super) fn read_with_model<'de>(body: &'de [u8], known: &'static [Field]) -> Result<Fields<'de>, Fault> {
    let fields = read_all(body, [known, OTHER_MODELS])?;
    let is_empty = |text: &str| matches!(text.replace([' ', '\t', '\r', '\n'], "").as_str(), "[]" | "{}" | "\"\"");
    match OTHER_MODELS.iter().find(|(name, _)| fields.get(name).is_some_and(|text| !is_empty(text))) {
        Some((name, _)) => {
            Err(Fault::field(name, "must be left out: a call is admitted to the one 'model' that it names"))
        }
        None => Ok(fields),
    }
}

/// Reads one JSON object strictly: UTF-8 without a byte order mark, nothing after it, no known field twice, no
/// known field in another case (some servers ignore case), at most 127 levels deep where values are looked into.
/// Unknown fields are looked into as well, so that depth is bounded everywhere; kept ones are checked by whoever
/// reads their text.
///
/// # Errors
/// The first thing wrong.
pub(super) fn read<'de>(body: &'de [u8], known: &'static [Field]) -> Result<Fields<'de>, Fault> {
    read_all(body, [known, &[]])
}

fn read_all<'de>(body: &'de [u8], known: Known) -> Result<Fields<'de>, Fault> {
    let text = std::str::from_utf8(body).map_err(|_| Fault::body("is not UTF-8"))?;
    if text.starts_with('\u{feff}') {
        return Err(Fault::body("begins with a byte order mark"));
    }
    if !text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') {
        return Err(Fault::body("must be a JSON object"));
    }
    let mut fields = Fields { kept: Vec::new(), prompt: Tally::default() };
    let mut fault = None;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let object = Object { known, seen: Vec::new(), fields: &mut fields, fault: &mut fault };
    let read = deserializer.deserialize_map(object).and_then(|()| deserializer.end());
    match (fault, read) {
        (Some(fault), _) => Err(fault),
        (None, Err(error)) => Err(Fault::body(format!("is not JSON that can be used: {error}"))),
        (None, Ok(())) => Ok(fields),
    }
}

/// The fields that are known, in two lists.
type Known = [&'static [Field]; 2];

struct Object<'out, 'de> {
    known: Known,
    seen: Vec<&'static str>,
    fields: &'out mut Fields<'de>,
    /// Set beside the parser's own error, which can carry no more than a text.
    fault: &'out mut Option<Fault>,
}

impl<'de> Visitor<'de> for Object<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key_seed(Name(self.known))? {
            let field = self.admit(name).map_err(|fault| {
                *self.fault = Some(fault);
                A::Error::custom("refused")
            })?;
            match field {
                Some((name, Use::Keep)) => {
                    let raw: &'de RawValue = map.next_value()?;
                    self.fields.kept.push((name, raw.get()));
                }
                Some((_, Use::Weigh)) => {
                    map.next_value_seed(Weigh::list(&mut self.fields.prompt))?;
                }
                Some((_, Use::Prompt)) => {
                    map.next_value_seed(Weigh::prompt(&mut self.fields.prompt))?;
                }
                None => map.next_value_seed(Weigh::skip())?,
            }
        }
        Ok(())
    }
}

impl Object<'_, '_> {
    fn admit(&mut self, name: Match) -> Result<Option<Field>, Fault> {
        match name {
            Match::Unknown => Ok(None),
            Match::OtherCase(name) => Err(Fault::field(name, "must be written in lower case")),
            Match::Known((name, _)) if self.seen.contains(&name) => Err(Fault::field(name, "is given twice")),
            Match::Known(field) => {
                self.seen.push(field.0);
                Ok(Some(field))
            }
        }
    }
}

/// A field's name, after unescaping, against the known ones.
enum Match {
    Known(Field),
    OtherCase(&'static str),
    Unknown,
}

struct Name(Known);

impl<'de> serde::de::DeserializeSeed<'de> for Name {
    type Value = Match;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Match, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = Match;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Match, E> {
        Ok(match self.0.into_iter().flatten().find(|(known, _)| known.eq_ignore_ascii_case(name)) {
            Some(field) if field.0 == name => Match::Known(*field),
            Some(field) => Match::OtherCase(field.0),
            None => Match::Unknown,
        })
    }
}
