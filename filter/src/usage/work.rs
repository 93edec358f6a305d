//! How many bytes the readers of replies have looked at or copied, on this thread: tests tell linear work from quadratic
//! by it, and not by a clock. Outside of tests nothing is counted.

#[cfg(test)]
thread_local! {
    static BYTES: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Each loop over bytes of a reply says here how many there are.
#[cfg(test)]
pub(super) fn on(bytes: usize) {
    BYTES.set(BYTES.get() + bytes as u64);
}

#[cfg(not(test))]
pub(super) fn on(_: usize) {}

/// The work of one piece of code.
#[cfg(test)]
pub(super) fn of(run: impl FnOnce()) -> u64 {
    let before = BYTES.get();
    run();
    BYTES.get() - before
}
