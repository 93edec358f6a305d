//! A search through every interleaving of the ledger protocol that its bounds allow.
//!
//! The state machines are the product's own, `sluice_policy::ledger` and `sluice_policy::holder`: a world is some of them
//! and what is under way between them, and a step is one thing that happens, in any order. Nothing of the product depends
//! on this crate, and no line of it knows the mutants that the search must find.
//!
//! Reading order: `scene` (what bounds a search), `world` (its states), `action` and `step` (what may happen, and what it
//! makes of a world), `view` (when two worlds are the same), `check` (what must hold), `search`, and then what is
//! searched: `scenes` and `mutant`.

pub mod scene;
pub mod world;

mod action;
mod step;
mod view;

mod check;
mod pool;
pub mod search;
pub mod seen;

pub mod mutant;
pub mod report;
pub mod scenes;
pub mod trace;
