//! Changes of a body: bytes are cut out and put in, and the rest stays as the client wrote it.

use sluice_policy::units::Tokens;
use std::borrow::Cow;
use std::ops::Range;

/// The value of a bound that bounds nothing.
pub(super) const UNLIMITED: Tokens = Tokens(u64::MAX);

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

/// A bound that a body names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bound {
    /// Where its value stands.
    pub(super) place: Range<usize>,
    /// `None`: null. Unlimited is the largest number.
    pub(super) value: Option<Tokens>,
    /// Every server of the dialect obeys it. Of another spelling nobody knows whether this server reads it.
    pub(super) is_own: bool,
}

/// Where a body bounds the tokens of a sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(super) given: Vec<Bound>,
    /// Where a bound can be put when the dialect's own is not given, and what it is called.
    pub(super) insert: Option<(usize, &'static str)>,
}

impl Limits {
    /// The edits that bring every bound down to a ceiling, and put one in where no server need obey any; none for a
    /// body that obeys already.
    pub(crate) fn clamp(&self, ceiling: Tokens) -> Vec<BodyEdit> {
        let lower = |bound: &Bound| BodyEdit::replace(bound.place.clone(), ceiling.0.to_string());
        let above = self.given.iter().filter(|bound| bound.value.is_some_and(|value| value > ceiling));
        let mut edits: Vec<BodyEdit> = above.map(lower).collect();
        if !self.is_bounded() {
            let null = self.given.iter().find(|bound| bound.is_own).map(lower);
            let inserted = |(at, name)| BodyEdit::insert(at, format!("\"{name}\":{},", ceiling.0));
            edits.extend(null.or_else(|| self.insert.map(inserted)));
        }
        edits
    }

    /// The most that a server may yield, whichever of the bounds it reads: the largest, and `None` when one of them is
    /// unlimited or no server need obey any.
    pub(super) fn bound(&self) -> Option<Tokens> {
        let largest = self.given.iter().filter_map(|bound| bound.value).max();
        largest.filter(|bound| *bound != UNLIMITED && self.is_bounded())
    }

    /// Whether the dialect's own bound has a value. Where it has two spellings one of them may be null: of two bounds
    /// that differ only one was meant.
    fn is_bounded(&self) -> bool {
        self.given.iter().any(|bound| bound.is_own && bound.value.is_some())
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
        let of = |given: Vec<Bound>| Limits { given, insert: Some((1, "max_tokens")) };
        let own = |value: Option<u64>| Bound { place: 0..1, value: value.map(Tokens), is_own: true };
        assert_eq!(text(of(vec![own(Some(7))]).clamp(Tokens(5))), ["5"]);
        assert_eq!(text(of(vec![own(None)]).clamp(Tokens(5))), ["5"]);
        assert!(text(of(vec![own(None), own(Some(4))]).clamp(Tokens(5))).is_empty());
        assert!(text(of(vec![own(Some(5))]).clamp(Tokens(5))).is_empty());
        assert_eq!(text(of(Vec::new()).clamp(Tokens(5))), [r#""max_tokens":5,"#]);
        assert!(text(Limits::default().clamp(Tokens(5))).is_empty());
    }

    #[test]
    fn a_bound_that_a_server_need_not_read_is_lowered_and_bounds_nothing_by_itself() {
        let text = |edits: Vec<BodyEdit>| edits.into_iter().map(|edit| edit.text.into_owned()).collect::<Vec<_>>();
        let other = |value| Bound { place: 2..3, value: Some(Tokens(value)), is_own: false };
        let own = |value: Option<u64>| Bound { place: 0..1, value: value.map(Tokens), is_own: true };
        for (given, bound, edits) in [
            (vec![other(1)], None, &[r#""max_tokens":5,"#][..]),
            (vec![other(9)], None, &["5", r#""max_tokens":5,"#]),
            (vec![own(None), other(1)], None, &["5"]),
            (vec![own(Some(4)), other(1)], Some(4), &[]),
            (vec![own(Some(4)), other(9)], Some(9), &["5"]),
            (vec![own(Some(4)), other(UNLIMITED.0)], None, &["5"]),
        ] {
            let limits = Limits { given, insert: Some((1, "max_tokens")) };
            assert_eq!(limits.bound(), bound.map(Tokens), "{limits:?}");
            assert_eq!(text(limits.clamp(Tokens(5))), edits, "{limits:?}");
        }
    }
}
