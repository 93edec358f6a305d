//! Changes of a body: bytes are cut out and put in, and the rest stays as the client wrote it.

use sluice_policy::units::Tokens;
use std::borrow::Cow;
use std::ops::Range;

/// The replacement of some bytes of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BodyEdit {
    pub(crate) range: Range<usize>,
    pub(crate) text: Cow<'static, str>,
}

impl BodyEdit {
    pub(super) fn insert(at: usize, text: impl Into<Cow<'static, str>>) -> Self {
        Self { range: at..at, text: text.into() }
    }

    pub(super) fn replace(range: Range<usize>, text: impl Into<Cow<'static, str>>) -> Self {
        Self { range, text: text.into() }
    }

    /// A model's name in place of another.
    pub(crate) fn rename(place: Range<usize>, model: &str) -> Self {
        // A text always serialises.
        Self::replace(place, serde_json::to_string(model).unwrap_or_default())
    }
}

/// The length of a body of `bytes` after these edits.
pub(crate) fn length_after(bytes: usize, edits: &[BodyEdit]) -> usize {
    edits.iter().fold(bytes, |bytes, edit| (bytes + edit.text.len()).saturating_sub(edit.range.len()))
}

/// The edited body; `None` when the edits do not fit it or each other. Edits of one place keep their order.
pub(crate) fn apply(body: &[u8], mut edits: Vec<BodyEdit>) -> Option<Vec<u8>> {
    edits.sort_by_key(|edit| edit.range.start);
    let mut edited = Vec::with_capacity(length_after(body.len(), &edits));
    let mut done = 0;
    for edit in &edits {
        edited.extend_from_slice(body.get(done..edit.range.start)?);
        edited.extend_from_slice(edit.text.as_bytes());
        done = edit.range.end;
    }
    edited.extend_from_slice(body.get(done..)?);
    Some(edited)
}

/// Where a body bounds the tokens of a sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Each bound that the body names, and its value; `None` for one that is null. Unlimited is the largest number.
    pub(super) given: Vec<(Range<usize>, Option<Tokens>)>,
    /// Where a bound can be put when none is given, and what it is called.
    pub(super) insert: Option<(usize, &'static str)>,
}

impl Limits {
    /// The edits that bring every bound down to a ceiling.
    pub(crate) fn clamp(&self, ceiling: Tokens) -> Vec<BodyEdit> {
        let lower = |range: &Range<usize>| BodyEdit::replace(range.clone(), ceiling.0.to_string());
        if self.given.iter().any(|(_, value)| value.is_some()) {
            // Those that are null stay so: of two bounds that differ only one was meant.
            let above = self.given.iter().filter(|(_, value)| value.is_some_and(|value| value > ceiling));
            return above.map(|(range, _)| lower(range)).collect();
        }
        match (self.given.first(), self.insert) {
            (Some((null, _)), _) => vec![lower(null)],
            (None, Some((at, name))) => vec![BodyEdit::insert(at, format!("\"{name}\":{},", ceiling.0))],
            (None, None) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_made_in_the_order_of_their_places() {
        let edits = vec![BodyEdit::replace(4..6, "xyz"), BodyEdit::insert(1, "a"), BodyEdit::insert(1, "b")];
        assert_eq!(length_after(7, &edits), 10);
        assert_eq!(apply(b"0123456", edits).as_deref(), Some(&b"0ab123xyz6"[..]));
    }

    #[test]
    fn edits_that_do_not_fit_are_not_made() {
        assert_eq!(apply(b"0123", vec![BodyEdit::insert(5, "x")]), None);
        assert_eq!(apply(b"0123", vec![BodyEdit::replace(0..3, ""), BodyEdit::replace(1..2, "")]), None);
    }

    #[test]
    fn a_ceiling_lowers_what_is_above_it_and_is_put_where_there_was_no_bound() {
        let text = |edits: Vec<BodyEdit>| edits.into_iter().map(|edit| edit.text.into_owned()).collect::<Vec<_>>();
        let given = |value| Limits { given: vec![(0..1, value)], insert: Some((1, "max_tokens")) };
        assert_eq!(text(given(Some(Tokens(7))).clamp(Tokens(5))), ["5"]);
        assert_eq!(text(given(None).clamp(Tokens(5))), ["5"]);
        let both = Limits { given: vec![(0..1, None), (2..3, Some(Tokens(4)))], insert: None };
        assert!(text(both.clamp(Tokens(5))).is_empty());
        assert!(text(given(Some(Tokens(5))).clamp(Tokens(5))).is_empty());
        let none = Limits { given: Vec::new(), insert: Some((1, "max_tokens")) };
        assert_eq!(text(none.clamp(Tokens(5))), [r#""max_tokens":5,"#]);
    }
}
