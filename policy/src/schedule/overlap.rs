//! Whether two rules contradict each other at some time of some week.

use super::{Days, TimeRule, Window};

const WEEK_S: i64 = 7 * 86_400;

/// What two rules set differently while both are active.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Contradiction {
    /// Like `pools smol concurrent`.
    pub(super) fields: Vec<String>,
    /// Like `sat 18:00 Europe/Berlin`, by the later rule's clock.
    pub(super) since: String,
}

pub(super) fn contradiction(earlier: &TimeRule, later: &TimeRule) -> Option<Contradiction> {
    let fields = later.change.contradicts(&earlier.change);
    if fields.is_empty() {
        return None;
    }
    let since = first_overlap(&later.window, &earlier.window)?;
    Some(Contradiction { fields, since: format!("{} {}", clock(since), later.window.zone) })
}

/// When in the week both windows begin to hold together, in seconds after Monday 00:00 on `a`'s clock.
fn first_overlap(a: &Window, b: &Window) -> Option<i64> {
    let mut found = Vec::new();
    for ahead in a.zone.differences(&b.zone) {
        for (a_start, a_length) in a.weekly() {
            for (b_start, b_length) in b.weekly().map(|(start, length)| (start + ahead, length)) {
                if (b_start - a_start).rem_euclid(WEEK_S) < a_length {
                    found.push(b_start.rem_euclid(WEEK_S));
                } else if (a_start - b_start).rem_euclid(WEEK_S) < b_length {
                    found.push(a_start);
                }
            }
        }
    }
    found.into_iter().min()
}

fn clock(week_s: i64) -> String {
    let day = usize::try_from(week_s / 86_400).ok().and_then(|day| Days::NAMES.get(day)).unwrap_or(&"");
    format!("{day} {:02}:{:02}", week_s / 3_600 % 24, week_s / 60 % 60)
}
