//! A body's `priority`: the turn that it asks for in the queue of vLLM or SGLang. Where the operator says how that server
//! writes Sluice's levels, the call gets no better one than its own; elsewhere the field is taken out.

use super::BodyEdit;
use super::Fault;
use super::fields::place;
use super::raw::Fields;
use sluice_policy::units::Priority;
use std::ops::Range;

pub(super) const NAME: &str = "priority";

/// What a pool's servers call each level, from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Levels([i32; 10]);

impl Levels {
    /// `None` where they neither rise nor fall all the way, so that nobody knows which number is the better one.
    pub(crate) fn new(levels: [i32; 10]) -> Option<Self> {
        let is_ordered = levels.is_sorted() || levels.iter().rev().is_sorted();
        is_ordered.then_some(Self(levels))
    }

    /// What a call of this level gets that asks for `asked`: that, if it is no better.
    fn of(self, level: Priority, asked: Option<i32>) -> i32 {
        let Levels(levels) = self;
        let own = levels.get(usize::from(u8::from(level))).copied().unwrap_or_default();
        let last_is_largest = levels.first() <= levels.last();
        match asked {
            None => own,
            Some(asked) if last_is_largest => asked.max(own),
            Some(asked) => asked.min(own),
        }
    }
}

/// What a body says of its turn, and where something could be said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    /// Right behind the brace that opens the body.
    start: usize,
    given: Option<Given>,
    /// The body has no other field.
    is_alone: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Given {
    value: Option<i32>,
    value_place: Range<usize>,
    /// With its name and one comma.
    field_place: Range<usize>,
}

impl Turn {
    pub(super) fn read(body: &[u8], fields: &Fields<'_>) -> Result<Option<Self>, Fault> {
        let given = fields.raw(NAME).map(|text| Given::read(body, text)).transpose()?;
        let is_alone = fields.count == usize::from(given.is_some());
        Ok(Some(Self { start: super::fields::start(body), given, is_alone }))
    }

    /// Adds what gives a call the turn of its level, or none of its own. All other edits are there already: of those that
    /// put a field in, the last has a comma too many if no field of the body's own is left behind it.
    pub(crate) fn add_to(self, edits: &mut Vec<BodyEdit>, levels: Option<Levels>, level: Priority) {
        let (edit, stays) = match (self.given, levels) {
            (None, None) => (None, false),
            (None, Some(levels)) => {
                let text = format!("\"{NAME}\":{},", levels.of(level, None));
                (Some(BodyEdit::insert(self.start, text)), false)
            }
            (Some(given), None) => (Some(BodyEdit::replace(given.field_place, "")), false),
            (Some(given), Some(levels)) => {
                let value = levels.of(level, given.value);
                let is_better = given.value != Some(value);
                (is_better.then(|| BodyEdit::replace(given.value_place, value.to_string())), true)
            }
        };
        edits.extend(edit);
        if self.is_alone && !stays {
            let last = edits.iter_mut().rfind(|edit| edit.text.ends_with(','));
            if let Some(last) = last {
                last.text.to_mut().pop();
            }
        }
    }
}

impl Given {
    fn read(body: &[u8], text: &str) -> Result<Self, Fault> {
        let fault = || Fault::field(NAME, "must be a whole number of 32 bits");
        let value = if text == "null" { None } else { Some(text.parse().map_err(|_| fault())?) };
        let value_place = place(body, text);
        // The parser has read it there, so it is found.
        let field_place = field_around(body, &value_place).ok_or_else(fault)?;
        Ok(Self { value, value_place, field_place })
    }
}

/// A field with its name and the comma behind it, or, of the last one, the comma before it.
fn field_around(body: &[u8], value: &Range<usize>) -> Option<Range<usize>> {
    let before = |end: usize| body.get(..end).map(|text| text.trim_ascii_end().len());
    let colon = before(value.start)?.checked_sub(1)?;
    let closing = before(colon)?.checked_sub(1)?;
    // A name that is this one has no quotes in it, however it is escaped.
    let opening = body.get(..closing)?.iter().rposition(|byte| *byte == b'"')?;
    let after = body.get(value.end..)?;
    let skipped = after.len() - after.trim_ascii_start().len();
    if after.get(skipped) == Some(&b',') {
        return Some(opening..value.end + skipped + 1);
    }
    let preceding = before(opening)?;
    let has_comma = preceding.checked_sub(1).and_then(|at| body.get(at)) == Some(&b',');
    Some(if has_comma { preceding - 1..value.end } else { opening..value.end })
}

#[cfg(test)]
mod tests {
    use super::super::{Dialect, Reads, Rules, apply};
    use super::*;
    use serde_json::{Value, json};
    use sluice_policy::units::Tokens;

    const ASCENDING: Levels = Levels([0, 10, 20, 30, 40, 50, 60, 70, 80, 90]);
    const DESCENDING: Levels = Levels([9, 8, 7, 6, 5, 4, 3, 2, 1, 0]);

    /// What goes on to a server of a call to a model that its path may name.
    fn edited(body: &str, levels: Option<Levels>, ceiling: Option<u64>) -> Result<String, Fault> {
        let mut calls = Dialect::all().into_iter().filter_map(|(name, dialect)| match dialect.reads() {
            Reads::Json(parse) if name == "openai_chat" => {
                Some(parse(body.as_bytes(), Rules { path_names_model: true, ..Rules::TEST }))
            }
            _ => None,
        });
        let call = calls.next().unwrap()?;
        let mut edits: Vec<BodyEdit> = call.usage_request.map(|request| request.edit).into_iter().collect();
        edits.extend(ceiling.into_iter().flat_map(|ceiling| call.limits.clamp(Tokens(ceiling))));
        call.turn.unwrap().add_to(&mut edits, levels, Priority::parse("4").unwrap());
        Ok(String::from_utf8(apply(body.as_bytes(), edits).unwrap()).unwrap())
    }

    #[test]
    fn a_turn_that_is_asked_for_is_taken_out_where_nobody_says_what_it_means() {
        for (body, expected) in [
            (r#"{"model":"m","priority":-5}"#, r#"{"model":"m"}"#),
            (r#"{"priority":-5,"model":"m"}"#, r#"{"model":"m"}"#),
            (r#"{"model":"m" , "priority" : 7 , "n":1}"#, r#"{"model":"m" ,  "n":1}"#),
            (r#"{"model":"m","\u0070riority":null}"#, r#"{"model":"m"}"#),
            (r#"{"model":"m"}"#, r#"{"model":"m"}"#),
            (r#"{"priority":1}"#, "{}"),
            ("{\n\"priority\" :\t1\r}", "{\n\r}"),
        ] {
            assert_eq!(edited(body, None, None).as_deref(), Ok(expected), "{body}");
        }
    }

    #[test]
    fn a_call_gets_no_better_turn_than_its_level_has() {
        let [ascending, descending] = [ASCENDING, DESCENDING].map(Some);
        for (body, levels, expected) in [
            (r#"{"model":"m","priority":-5}"#, ascending, r#"{"model":"m","priority":40}"#),
            (r#"{"model":"m","priority":41}"#, ascending, r#"{"model":"m","priority":41}"#),
            (r#"{"model":"m","priority":null}"#, ascending, r#"{"model":"m","priority":40}"#),
            (r#"{"model":"m"}"#, ascending, r#"{"priority":40,"model":"m"}"#),
            (r#"{"model":"m","priority":99}"#, descending, r#"{"model":"m","priority":5}"#),
            (r#"{"model":"m","priority":-1}"#, descending, r#"{"model":"m","priority":-1}"#),
        ] {
            assert_eq!(edited(body, levels, None).as_deref(), Ok(expected), "{body}");
        }
    }

    /// Wherever the field stands, whatever stands around it and whatever else is put in: the body stays JSON, and means
    /// what the client wrote in everything else.
    #[test]
    fn a_body_stays_what_it_was_but_for_what_is_put_in_and_taken_out() {
        let others = [r#""stream":true"#, r#""n":1"#, r#""model":"m""#, r#""x":{"priority":9,"y":"\"priority\":3,"}"#];
        let given = [None, Some("-5"), Some("null"), Some("60")];
        let mut tried = 0;
        for (given, name) in given.into_iter().flat_map(|given| [(given, "priority"), (given, "prio\\u0072ity")]) {
            for chosen in 0..1 << others.len() {
                let chosen: Vec<&str> =
                    (0..others.len()).filter(|bit| chosen >> bit & 1 == 1).map(|bit| others[bit]).collect();
                for at in 0..=chosen.len() {
                    for space in ["", " ", "\r\n\t "] {
                        let mut fields: Vec<String> = chosen.iter().map(ToString::to_string).collect();
                        fields.splice(at..at, given.map(|given| format!("\"{name}\"{space}:{space}{given}")));
                        let body = format!("{space}{{{space}{}{space}}}", fields.join(&format!("{space},{space}")));
                        for levels in [None, Some(ASCENDING), Some(DESCENDING)] {
                            for ceiling in [None, Some(7)] {
                                assert_means(&body, given, levels, ceiling);
                                tried += 1;
                            }
                        }
                    }
                }
            }
        }
        assert_eq!(tried, 8 * 48 * 3 * 6);
    }

    fn assert_means(body: &str, given: Option<&str>, levels: Option<Levels>, ceiling: Option<u64>) {
        let edited = edited(body, levels, ceiling).unwrap();
        let mut expected: Value = serde_json::from_str(body).unwrap();
        let fields = expected.as_object_mut().unwrap();
        fields.remove(NAME);
        if let Some(Levels(levels)) = levels {
            let own = levels[4];
            let asked = given.and_then(|given| given.parse().ok()).unwrap_or(own);
            let turn = if levels[0] < levels[9] { asked.max(own) } else { asked.min(own) };
            fields.insert(NAME.to_owned(), turn.into());
        }
        if fields.contains_key("stream") {
            fields.insert("stream_options".to_owned(), json!({"include_usage": true}));
        }
        fields.extend(ceiling.map(|ceiling| ("max_tokens".to_owned(), ceiling.into())));
        assert_eq!(serde_json::from_str::<Value>(&edited).ok(), Some(expected), "{body} became {edited}");
    }

    #[test]
    fn a_turn_that_is_no_whole_number_is_refused() {
        for value in ["1.5", "\"1\"", "[]", "99999999999", "true"] {
            let fault = edited(&format!(r#"{{"model":"m","priority":{value}}}"#), None, None).unwrap_err();
            assert_eq!(fault.param.as_deref(), Some(NAME), "{value}");
        }
        assert!(edited(r#"{"model":"m","priority":1,"priority":2}"#, None, None).is_err(), "given twice");
        assert!(edited(r#"{"model":"m","Priority":1}"#, None, None).is_err(), "another case");
    }
}
