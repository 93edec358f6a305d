//! Short stories with the facts that are expected of them. Their names say what they show.

#[path = "cases/budgets.rs"]
mod budgets;
#[path = "cases/clock.rs"]
mod clock;
#[path = "cases/contention.rs"]
mod contention;
#[path = "cases/failback.rs"]
mod failback;
#[path = "cases/freeze.rs"]
mod freeze;
#[path = "cases/grants.rs"]
mod grants;
#[path = "cases/order.rs"]
mod order;
#[path = "cases/rates.rs"]
mod rates;
#[path = "cases/terms.rs"]
mod terms;
#[path = "cases/zombies.rs"]
mod zombies;

use super::homes::{Home, Pure};
use super::story::Story;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub(crate) type Case = (&'static str, fn(&mut Story<'_>));

/// Functions with their names, as a list of cases.
macro_rules! cases {
    ($($case:ident),* $(,)?) => { &[$((stringify!($case), $case)),*] };
}
use cases;

pub(crate) fn all() -> Vec<Case> {
    let groups = [
        grants::CASES,
        zombies::CASES,
        freeze::CASES,
        failback::CASES,
        clock::CASES,
        contention::CASES,
        order::CASES,
        rates::CASES,
        budgets::CASES,
        terms::CASES,
    ];
    groups.concat()
}

/// Tells every case to a home; the facts must be so, and the answers those of the function. Names what failed.
pub(crate) fn tell_all(home: &mut dyn Home) -> Vec<&'static str> {
    let mut pure = Pure::default();
    let is_told = |(name, case): &Case, home: &mut dyn Home| {
        catch_unwind(AssertUnwindSafe(|| {
            let mut story = Story::begin(home, name);
            case(&mut story);
            story.transcript
        }))
        .ok()
    };
    let mut failed = Vec::new();
    for case in all() {
        let (expected, transcript) = (is_told(&case, &mut pure), is_told(&case, home));
        if transcript.is_none() || transcript != expected {
            failed.push(case.0);
        }
    }
    failed
}
