//! Every kind of fault: how it begins, how long it lasts, and how it is over.

mod fleets;
mod links;
mod pairs;
mod processes;
mod server;
mod several_servers;
mod shipped;

use super::world::{Home, World};
use anyhow::Result;
use std::pin::Pin;
use std::time::Duration;

pub type Strike<'a> = Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

pub struct Kind {
    pub name: &'static str,
    pub home: Home,
    /// Whether `./justw test` tries it, too.
    pub is_quick: bool,
    /// What it may do to what budgets were charged.
    pub books: BooksAfter,
    /// Breaks something and mends it: when it returns, the fault is over. Fails when something is found wrong that the
    /// counting of calls does not show.
    pub strike: for<'a> fn(&'a mut World) -> Strike<'a>,
}

pub const KINDS: [&[Kind]; 7] = [
    &processes::KINDS,
    &server::KINDS,
    &links::KINDS,
    &pairs::KINDS,
    &fleets::KINDS,
    &several_servers::KINDS,
    &shipped::KINDS,
];

/// Longer than a lease, shorter than a call may live.
const A_WHILE: Duration = Duration::from_millis(1_500);
/// Shorter than a lease.
const A_MOMENT: Duration = Duration::from_millis(200);

/// What a budget was charged, against what its callers were given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BooksAfter {
    /// As much, if no call was cut.
    Exact,
    /// No less.
    Charged,
    /// The ledger does not know.
    Forgotten,
}

impl Kind {
    const fn new(name: &'static str, home: Home, strike: for<'a> fn(&'a mut World) -> Strike<'a>) -> Self {
        Self { name, home, is_quick: false, books: BooksAfter::Exact, strike }
    }

    const fn quick(self) -> Self {
        Self { is_quick: true, ..self }
    }

    const fn forgetting(self) -> Self {
        Self { books: BooksAfter::Forgotten, ..self }
    }

    /// A gateway's own process, without a word to anybody.
    const fn killing(self) -> Self {
        Self { books: BooksAfter::Charged, ..self }
    }
}
