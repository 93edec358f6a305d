//! Deviations from the protocol that the search must find.
//!
//! No line of the product knows of them. A deviation is made where the machines meet: in what is sent, in what is read, in
//! the clock a holder is told, and in the ledger's stored form around a call. A search that would not notice one of them
//! proves nothing about the protocol either.

mod deeds;
mod stored;

pub use deeds::{after_sync, answered, before_sync, book, clock, reading, sending};

/// One deviation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutant {
    ExpiredLeaseReclaimed,
    StaleAnswerAccepted,
    NumbersIgnored,
    NoticeIncremental,
    NoticeBeforeRaise,
    FirstAnswerByMax,
    KeepNotClamped,
    ShrunkWithoutWord,
    FreezeOfOneLease,
    IncarnationForgotten,
    LeaseFromReceiving,
    HoldNotLowered,
    ChargedAgain,
    DrawnAgain,
    LentNotDebited,
    InheritedTwice,
    PicksKept,
    ContendedIgnored,
    ClockTrusted,
    RetryGivesBack,
    FreezeAlwaysLong,
    LeaverAwaited,
    SilentNotAwaited,
    IncarnationHeard,
    MissingTrusted,
    ComebackTrusted,
}

impl Mutant {
    pub const ALL: [Mutant; 26] = [
        Mutant::ExpiredLeaseReclaimed,
        Mutant::StaleAnswerAccepted,
        Mutant::NumbersIgnored,
        Mutant::NoticeIncremental,
        Mutant::NoticeBeforeRaise,
        Mutant::FirstAnswerByMax,
        Mutant::KeepNotClamped,
        Mutant::ShrunkWithoutWord,
        Mutant::FreezeOfOneLease,
        Mutant::IncarnationForgotten,
        Mutant::LeaseFromReceiving,
        Mutant::HoldNotLowered,
        Mutant::ChargedAgain,
        Mutant::DrawnAgain,
        Mutant::LentNotDebited,
        Mutant::InheritedTwice,
        Mutant::PicksKept,
        Mutant::ContendedIgnored,
        Mutant::ClockTrusted,
        Mutant::RetryGivesBack,
        Mutant::FreezeAlwaysLong,
        Mutant::LeaverAwaited,
        Mutant::SilentNotAwaited,
        Mutant::IncarnationHeard,
        Mutant::MissingTrusted,
        Mutant::ComebackTrusted,
    ];

    /// What it does otherwise.
    pub fn name(self) -> &'static str {
        match self {
            Mutant::ExpiredLeaseReclaimed => "an expired lease is reclaimed at once",
            Mutant::StaleAnswerAccepted => "a holder takes answers to superseded calls",
            Mutant::NumbersIgnored => "the ledger takes calls in any order",
            Mutant::NoticeIncremental => "notices tell increments",
            Mutant::NoticeBeforeRaise => "a notice is sent before its slots are booked",
            Mutant::FirstAnswerByMax => "the first answer raises the hold, and never sets it",
            Mutant::KeepNotClamped => "what a holder keeps is taken at its word",
            Mutant::ShrunkWithoutWord => "the ledger shrinks a holder that has not said so",
            Mutant::FreezeOfOneLease => "a failover freezes for one lease",
            Mutant::IncarnationForgotten => "a new incarnation's zombies are forgotten",
            Mutant::LeaseFromReceiving => "a lease counts from its answer",
            Mutant::HoldNotLowered => "a holder says what it keeps and goes on using more",
            Mutant::ChargedAgain => "a repeated call's charges count again",
            Mutant::DrawnAgain => "draws are told as increments",
            Mutant::LentNotDebited => "what is lent is not taken out of the level",
            Mutant::InheritedTwice => "what the dead were lent comes back twice",
            Mutant::PicksKept => "turns outlive the call they answered",
            Mutant::ContendedIgnored => "a holder does not care who waits elsewhere",
            Mutant::ClockTrusted => "the server's clock is believed whatever it says",
            Mutant::RetryGivesBack => "a holder gives back while its last call is unanswered",
            Mutant::FreezeAlwaysLong => "a freeze lasts until the longest call has ended whoever has asserted",
            Mutant::LeaverAwaited => "a holder that left in order is waited for",
            Mutant::SilentNotAwaited => "a freeze ends after a lease whoever is silent",
            Mutant::IncarnationHeard => "a new incarnation speaks for the one before",
            Mutant::MissingTrusted => "an account that is missing is taken for a new one",
            Mutant::ComebackTrusted => "a server that answers again after another is believed",
        }
    }

    /// How the invariant begins that it breaks.
    pub fn breaks(self) -> &'static str {
        match self {
            Mutant::ChargedAgain => "I6",
            Mutant::DrawnAgain | Mutant::LentNotDebited | Mutant::InheritedTwice => "I2",
            Mutant::PicksKept | Mutant::ContendedIgnored => "whoever was told",
            Mutant::RetryGivesBack | Mutant::FreezeAlwaysLong | Mutant::LeaverAwaited => "I8",
            _ => "I1",
        }
    }
}
