//! What happened somewhere in a search: a search in which nothing can go wrong proves nothing.

use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    StartedP0,
    StartedInTurn,
    RaisedByNotice,
    BecameZombie,
    TookUpZombies,
    ZombiesCameFree,
    FailedOver,
    FailedBack,
    Frozen,
    MovedWhileFrozen,
}

impl Event {
    pub const ALL: [Event; 10] = [
        Event::StartedP0,
        Event::StartedInTurn,
        Event::RaisedByNotice,
        Event::BecameZombie,
        Event::TookUpZombies,
        Event::ZombiesCameFree,
        Event::FailedOver,
        Event::FailedBack,
        Event::Frozen,
        Event::MovedWhileFrozen,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Event::StartedP0 => "a P0 started",
            Event::StartedInTurn => "a call started in its turn",
            Event::RaisedByNotice => "a notice brought a slot",
            Event::BecameZombie => "a lease ended with slots",
            Event::TookUpZombies => "a holder took its zombies up again",
            Event::ZombiesCameFree => "zombies came free",
            Event::FailedOver => "a replica took over",
            Event::FailedBack => "a server came back after another",
            Event::Frozen => "the ledger was frozen",
            Event::MovedWhileFrozen => "a slot moved while it was frozen",
        }
    }
}

/// How often, by event. Beside the states, so that it does not multiply them.
#[derive(Debug, Default)]
pub struct Seen([AtomicU64; Event::ALL.len()]);

impl Seen {
    pub fn count(&self, event: Event) {
        if let Some(count) = self.0.get(event as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn times(&self, event: Event) -> u64 {
        self.0.get(event as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }
}
