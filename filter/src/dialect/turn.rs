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
pub(crate) struct Levels(pub(crate) [i32; 10]);

impl Levels {
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
        let start = super::fields::start(body);
        let Some(text) = fields.raw(NAME) else { return Ok(Some(Self { start, given: None })) };
        let fault = || Fault::field(NAME, "must be a whole number of 32 bits");
        let value = if text == "null" { None } else { Some(text.parse().map_err(|_| fault())?) };
        let value_place = place(body, text);
        // The parser has read it there, so it is found.
        let field_place = field_around(body, &value_place).ok_or_else(fault)?;
        Ok(Some(Self { start, given: Some(Given { value, value_place, field_place }) }))
    }

    /// The edit that gives a call the turn of its level, or none of its own. Comes after all edits that insert.
    pub(crate) fn edit(&self, levels: Option<Levels>, level: Priority) -> Option<BodyEdit> {
        match (&self.given, levels) {
            (None, None) => None,
            (None, Some(levels)) => {
                Some(BodyEdit::insert(self.start, format!("\"{NAME}\":{},", levels.of(level, None))))
            }
            (Some(given), None) => Some(BodyEdit::replace(given.field_place.clone(), "")),
            (Some(given), Some(levels)) => {
                let value = levels.of(level, given.value);
                (given.value != Some(value)).then(|| BodyEdit::replace(given.value_place.clone(), value.to_string()))
            }
        }
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

    fn edited(body: &str, levels: Option<Levels>) -> Result<String, Fault> {
        let mut calls = Dialect::all().into_iter().filter_map(|(name, dialect)| match dialect.reads() {
            Reads::Json(parse) if name == "openai_chat" => Some(parse(body.as_bytes(), Rules::TEST)),
            _ => None,
        });
        let call = calls.next().unwrap()?;
        let edits = call.turn.and_then(|turn| turn.edit(levels, Priority::parse("4").unwrap()));
        let edited = apply(body.as_bytes(), edits.into_iter().collect()).unwrap();
        assert!(serde_json::from_slice::<serde_json::Value>(&edited).is_ok());
        Ok(String::from_utf8(edited).unwrap())
    }

    #[test]
    fn a_turn_that_is_asked_for_is_taken_out_where_nobody_says_what_it_means() {
        for (body, expected) in [
            (r#"{"model":"m","priority":-5}"#, r#"{"model":"m"}"#),
            (r#"{"priority":-5,"model":"m"}"#, r#"{"model":"m"}"#),
            (r#"{"model":"m" , "priority" : 7 , "n":1}"#, r#"{"model":"m" ,  "n":1}"#),
            (r#"{"model":"m","\u0070riority":null}"#, r#"{"model":"m"}"#),
            (r#"{"model":"m"}"#, r#"{"model":"m"}"#),
        ] {
            assert_eq!(edited(body, None).as_deref(), Ok(expected), "{body}");
        }
    }

    #[test]
    fn a_call_gets_no_better_turn_than_its_level_has() {
        let ascending = Some(Levels([0, 10, 20, 30, 40, 50, 60, 70, 80, 90]));
        let descending = Some(Levels([9, 8, 7, 6, 5, 4, 3, 2, 1, 0]));
        for (body, levels, expected) in [
            (r#"{"model":"m","priority":-5}"#, ascending, r#"{"model":"m","priority":40}"#),
            (r#"{"model":"m","priority":41}"#, ascending, r#"{"model":"m","priority":41}"#),
            (r#"{"model":"m","priority":null}"#, ascending, r#"{"model":"m","priority":40}"#),
            (r#"{"model":"m"}"#, ascending, r#"{"priority":40,"model":"m"}"#),
            (r#"{"model":"m","priority":99}"#, descending, r#"{"model":"m","priority":5}"#),
            (r#"{"model":"m","priority":-1}"#, descending, r#"{"model":"m","priority":-1}"#),
        ] {
            assert_eq!(edited(body, levels).as_deref(), Ok(expected), "{body}");
        }
    }

    #[test]
    fn a_turn_that_is_no_whole_number_is_refused() {
        for value in ["1.5", "\"1\"", "[]", "99999999999", "true"] {
            let fault = edited(&format!(r#"{{"model":"m","priority":{value}}}"#), None).unwrap_err();
            assert_eq!(fault.param.as_deref(), Some(NAME), "{value}");
        }
        assert!(edited(r#"{"model":"m","priority":1,"priority":2}"#, None).is_err(), "given twice");
        assert!(edited(r#"{"model":"m","Priority":1}"#, None).is_err(), "another case");
    }
}
