//! The instances of the filter in one Envoy, as each of them sees the others: who lives, and what those have left that do not.
//!
//! They share two texts. In the one each instance that answers for calls has a line, with a number that it raises as long as
//! its root context ticks. A number that stands still for some seconds, by the ticks of who looks at it, is that of a VM that
//! trapped: nobody else will tell the service of its end. In the other a VM that ends in good order leaves what it owes.

use sluice_policy::units::Millis;
use std::collections::BTreeMap;

/// How often each raises its number, and how often it looks at those of the others.
pub(crate) const BEAT_EVERY: Millis = Millis(500);
/// Looks at a number that stands still until its instance is taken for dead. By looks and not by a clock: an Envoy that stands
/// still as a whole looks at nothing meanwhile.
const LOOKS: u32 = 8;
/// Of what is left, so that an Envoy which nobody reads it in does not keep all of it.
pub(crate) const LEFT_MAX_BYTES: usize = 4 << 20;

/// One line: an instance, the cluster of its service, and its number.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line<'a> {
    worker: &'a str,
    cluster: &'a str,
    beat: u64,
}

fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    text.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ' ');
        let (worker, beat, cluster) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?);
        Some(Line { worker, cluster, beat })
    })
}

/// The text with an instance's number raised, and its line added where it has none.
pub(crate) fn beaten(text: &str, worker: &str, cluster: &str) -> String {
    let own = lines(text).find(|line| line.worker == worker).map_or(0, |line| line.beat);
    let mut after = without(text, worker);
    after.push_str(&format!("{worker} {} {cluster}\n", own.wrapping_add(1)));
    after
}

/// The text without an instance's line.
pub(crate) fn without(text: &str, worker: &str) -> String {
    let others = lines(text).filter(|line| line.worker != worker);
    others.map(|Line { worker, cluster, beat }| format!("{worker} {beat} {cluster}\n")).collect()
}

pub(crate) fn has(text: &str, worker: &str) -> bool {
    lines(text).any(|line| line.worker == worker)
}

/// What one instance has seen of the others.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// The number of each, when it was seen first, and how often since.
    seen: BTreeMap<String, (u64, Millis, u32)>,
}

/// An instance whose number stands still.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Silent {
    pub(crate) worker: String,
    pub(crate) cluster: String,
    /// It ticked for the last time so long ago, or longer by [`BEAT_EVERY`].
    pub(crate) silent: Millis,
}

impl Watch {
    /// Looks at the lines of all, and gives those that have stood still for long.
    pub(crate) fn look(&mut self, text: &str, now: Millis) -> Vec<Silent> {
        let mut seen = BTreeMap::new();
        let mut silent = Vec::new();
        for Line { worker, cluster, beat } in lines(text) {
            let (since, looks) = match self.seen.get(worker) {
                Some((before, since, looks)) if *before == beat => (*since, looks.saturating_add(1)),
                _ => (now, 1),
            };
            if looks > LOOKS {
                let (worker, cluster) = (worker.to_owned(), cluster.to_owned());
                silent.push(Silent { worker, cluster, silent: now.since(since) });
            } else {
                seen.insert(worker.to_owned(), (beat, since, looks));
            }
        }
        self.seen = seen;
        silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_that_ticks_is_never_silent_and_one_that_stops_is_so_after_four_seconds() {
        let (mut watch, mut text) = (Watch::default(), String::new());
        for look in 0..20 {
            text = beaten(&text, "one", "sluice");
            text = if look < 5 { beaten(&text, "two", "other service") } else { text };
            let silent = watch.look(&text, Millis(look * 500));
            match look {
                12 => {
                    let silent_for = Millis(4_000);
                    let expected = Silent { worker: "two".into(), cluster: "other service".into(), silent: silent_for };
                    assert_eq!(silent, [expected]);
                    text = without(&text, "two");
                }
                _ => assert_eq!(silent, [], "look {look}"),
            }
        }
        assert!(has(&text, "one") && !has(&text, "two"));
    }

    #[test]
    fn an_envoy_that_stood_still_finds_nobody_silent_when_it_goes_on() {
        let (mut watch, text) = (Watch::default(), beaten("", "two", "sluice"));
        assert_eq!(watch.look(&text, Millis(0)), []);
        assert_eq!(watch.look(&text, Millis(60_000)), [], "one look is not many");
        assert_eq!(watch.look(&beaten(&text, "two", "sluice"), Millis(60_500)), []);
    }

    #[test]
    fn a_text_that_nobody_wrote_is_no_instance() {
        assert_eq!(Watch::default().look("x\n\na b c\n", Millis(0)), []);
        assert_eq!(beaten("x\na b c\n", "one", "s"), "one 1 s\n");
    }
}
