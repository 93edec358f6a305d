//! A JSON object as the client wrote it: the one place that says what a field of a body may be.

use super::Fault;
use super::servers::{self, Harm};
use super::weigh::{Tally, Weigh};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

/// What a dialect does with a field that it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Its text is kept.
    Keep,
    /// Elements and strings are counted as messages.
    Weigh,
    /// The same, and those that the server runs are told apart.
    Tools,
    /// The same, and in messages' parts a picture or a sound counts by the piece.
    Messages,
    /// A text, token ids, or a list of either.
    Prompt,
    /// Of the API, and of no meaning here.
    Pass,
    /// An object of the caller's own names, except those that a server obeys.
    Labels,
    /// Of no API that is spoken here, and obeyed by a server all the same.
    Refuse(Harm),
}

/// A field that a dialect knows. A name that ends in `*` is a beginning.
pub(super) type Field = (&'static str, Use);

/// The kept fields of one object, and the weight of its prompt.
pub(super) struct Fields<'de> {
    kept: Vec<(&'static str, &'de str)>,
    /// How many it has, those that are not kept included.
    pub(super) count: usize,
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

/// Which names an object may have.
#[derive(Clone, Copy)]
pub(super) struct Known {
    own: &'static [Field],
    /// What servers read beyond these is known as well. Not where the names are those of a model's own inputs.
    of_servers: bool,
    /// Nothing else may be there.
    is_strict: bool,
}

impl Known {
    /// A body that names its model.
    pub(super) fn call(own: &'static [Field], is_strict: bool) -> Self {
        Self { own, of_servers: true, is_strict }
    }

    /// A body whose names are, beside these, the inputs of a model.
    pub(super) fn inputs(own: &'static [Field], is_strict: bool) -> Self {
        Self { own, of_servers: false, is_strict }
    }

    /// An object within a body.
    pub(super) fn part(own: &'static [Field]) -> Self {
        Self { own, of_servers: false, is_strict: false }
    }

    fn find(self, name: &str) -> Match {
        if let Some(field) = self.field(name) {
            return Match::Known(field);
        }
        let differs = folded(name).and_then(|folded| self.field(&folded));
        match differs.filter(|(_, known_use)| *known_use != Use::Pass) {
            Some((known, _)) => Match::Wrong(Fault::field(known, "must be written in lower case")),
            None if self.is_strict => Match::Wrong(Fault::field(
                shown(name),
                "is no field of this API, and nothing else passes on this route",
            )),
            None => Match::Unknown,
        }
    }

    fn field(self, name: &str) -> Option<Field> {
        let own = self.own.iter().copied().find(|(pattern, _)| servers::is_named(pattern, name));
        own.or_else(|| servers::field(name).filter(|_| self.of_servers && !self.is_strict))
    }
}

/// A name as readers see it that ignore case; `None` where that is no other one. Some letters outside of ASCII fold into
/// it: the Kelvin sign in lower case, the long s and the dotless i in upper case, ligatures in a full folding.
fn folded(name: &str) -> Option<String> {
    /// No known name is so long, even if each of its letters is written in three bytes.
    const BYTES_MAX: usize = 192;
    if name.len() > BYTES_MAX {
        return None;
    }
    let lower = name.chars().flat_map(char::to_lowercase);
    let folded: String = lower.flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect();
    Some(folded).filter(|folded| folded != name)
}

/// As much of a stranger's name as an error may repeat.
fn shown(name: &str) -> String {
    const CHARS_MAX: usize = 64;
    name.chars().take(CHARS_MAX).collect()
}

/// Reads one JSON object strictly: UTF-8 without a byte order mark, nothing after it, no field that matters twice or in
/// another case (some servers ignore case), at most 127 levels deep in every field.
///
/// # Errors
/// The first thing wrong.
pub(super) fn read(body: &[u8], known: Known) -> Result<Fields<'_>, Fault> {
    let text = std::str::from_utf8(body).map_err(|_| Fault::body("is not UTF-8"))?;
    if text.starts_with('\u{feff}') {
        return Err(Fault::body("begins with a byte order mark"));
    }
    if !text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') {
        return Err(Fault::body("must be a JSON object"));
    }
    let mut fields = Fields { kept: Vec::new(), count: 0, prompt: Tally::default() };
    let mut fault = None;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let object = Object { known, seen: Vec::new(), fields: &mut fields, fault: &mut fault };
    let read = deserializer.deserialize_map(object).and_then(|()| deserializer.end());
    match (fault, read) {
        (Some(fault), _) => Err(fault),
        (None, Err(error)) => Err(not_usable(&error)),
        (None, Ok(())) => Ok(fields),
    }
}

fn not_usable(error: &serde_json::Error) -> Fault {
    Fault::body(format!("is not JSON that can be used: {error}"))
}

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
            self.fields.count += 1;
            let (name, known_use) = self.admit(name).or_else(|fault| self.refuse(fault))?;
            let tally = &mut self.fields.prompt;
            match known_use {
                Use::Weigh => map.next_value_seed(Weigh::list(tally)).map(drop)?,
                Use::Tools => map.next_value_seed(Weigh::tools(tally)).map(drop)?,
                Use::Messages => map.next_value_seed(Weigh::messages(tally)).map(drop)?,
                Use::Prompt => map.next_value_seed(Weigh::prompt(tally)).map(drop)?,
                Use::Pass => map.next_value_seed(Weigh::skip()).map(drop)?,
                Use::Keep | Use::Labels | Use::Refuse(_) => {
                    let raw: &'de RawValue = map.next_value()?;
                    self.look_into(name, known_use, raw.get()).or_else(|fault| self.refuse(fault))?;
                }
            }
        }
        Ok(())
    }
}

impl<'de> Object<'_, 'de> {
    fn admit(&mut self, name: Match) -> Result<Field, Fault> {
        match name {
            Match::Unknown => Ok(("", Use::Pass)),
            Match::Wrong(fault) => Err(fault),
            // Two readers may take either of them: no decision here depends on it.
            Match::Known(field @ (_, Use::Pass | Use::Refuse(_) | Use::Labels)) => Ok(field),
            Match::Known((name, _)) if self.seen.contains(&name) => Err(Fault::field(name, "is given twice")),
            Match::Known(field) => {
                self.seen.push(field.0);
                Ok(field)
            }
        }
    }

    /// A value by its text, which the parser has not walked.
    fn look_into(&mut self, name: &'static str, known_use: Use, text: &'de str) -> Result<(), Fault> {
        match known_use {
            Use::Refuse(_) | Use::Labels if is_empty(text) => Ok(()),
            Use::Refuse(harm) => Err(Fault::field(name, harm.problem())),
            Use::Labels => read(text.as_bytes(), Known::part(servers::LABELS))
                .map(drop)
                .map_err(|fault| Fault::field(name, format!("is wrong: {}", fault.message))),
            Use::Keep | Use::Weigh | Use::Tools | Use::Messages | Use::Prompt | Use::Pass => {
                self.fields.kept.push((name, text));
                let walked = Weigh::skip().deserialize(&mut serde_json::Deserializer::from_str(text));
                walked.map(drop).map_err(|error| not_usable(&error))
            }
        }
    }

    fn refuse<T, E: Error>(&mut self, fault: Fault) -> Result<T, E> {
        *self.fault = Some(fault);
        Err(E::custom("refused"))
    }
}

/// Whether a value says nothing: null, or an empty text, list or object.
fn is_empty(text: &str) -> bool {
    let mut significant = text.bytes().filter(|byte| !matches!(byte, b' ' | b'\t' | b'\r' | b'\n'));
    let begins = [significant.next(), significant.next()];
    text == "null"
        || (significant.next().is_none() && [b"[]", b"{}", b"\"\""].iter().any(|empty| begins == empty.map(Some)))
}

/// A field's name, after unescaping, against the known ones.
enum Match {
    Known(Field),
    Unknown,
    Wrong(Fault),
}

struct Name(Known);

impl<'de> DeserializeSeed<'de> for Name {
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
        Ok(self.0.find(name))
    }
}

#[cfg(test)]
mod tests;
