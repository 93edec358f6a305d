//! The ledger's servers that a replica knows, from its calls about all accounts.
//!
//! An account that is asked for again after hours learns from them when its server took over, and thaws by that; without
//! them it would have to wait as if that had just happened.

use super::less_drift;
use crate::ledger::{Loss, MOST_SERVERS, Sighting};
use crate::units::Millis;

/// Invariant: at most [`MOST_SERVERS`], each once; the one heard of first comes first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Servers(Vec<Known>);

/// A server as it was seen then.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Known {
    seen: Sighting,
    at: Millis,
}

impl Known {
    /// How long it has been in charge at least, by clocks that drift apart.
    fn ago(&self, now: Millis) -> Millis {
        self.seen.ago.plus(less_drift(now.since(self.at)))
    }
}

impl Servers {
    /// An account was answered.
    pub fn hear(&mut self, seen: &Sighting, now: Millis) {
        match self.0.iter_mut().find(|known| known.seen.run == seen.run) {
            None => self.add(Known { seen: seen.clone(), at: now }),
            Some(known) => {
                let is_news = match (seen.lost.cmp(&known.seen.lost), seen.lost) {
                    (std::cmp::Ordering::Less, _) => false,
                    (std::cmp::Ordering::Greater, _) => true,
                    // It may lose everything more than once.
                    (std::cmp::Ordering::Equal, Loss::All) => seen.ago < known.ago(now),
                    (std::cmp::Ordering::Equal, Loss::None | Loss::Latest) => seen.ago > known.ago(now),
                };
                if is_news {
                    *known = Known { seen: seen.clone(), at: now };
                }
            }
        }
    }

    /// What a call says of them.
    #[must_use]
    pub fn known(&self, now: Millis) -> Vec<Sighting> {
        self.0.iter().map(|known| Sighting { ago: known.ago(now), ..known.seen.clone() }).collect()
    }

    fn add(&mut self, new: Known) {
        // It has taken the place of one of the others, which may come back as another server than it was. Those that are
        // still there are heard of again.
        if new.seen.lost != Loss::None {
            self.0.clear();
        }
        if self.0.len() >= MOST_SERVERS {
            self.0.remove(0);
        }
        self.0.push(new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(run: &str, ago: u64, lost: Loss) -> Sighting {
        Sighting { run: run.to_owned(), ago: Millis(ago), lost }
    }

    fn known(servers: &Servers, now: u64) -> Vec<(String, u64, Loss)> {
        servers.known(Millis(now)).into_iter().map(|seen| (seen.run, seen.ago.0, seen.lost)).collect()
    }

    #[test]
    fn the_longest_sighting_of_a_server_counts_and_grows_less_the_drift() {
        let mut servers = Servers::default();
        servers.hear(&seen("a", 5_000, Loss::None), Millis(1_000));
        servers.hear(&seen("a", 100, Loss::None), Millis(1_000));
        assert_eq!(known(&servers, 2_000), [("a".to_owned(), 5_980, Loss::None)]);
    }

    #[test]
    fn what_took_the_place_of_a_server_is_all_that_is_known() {
        let mut servers = Servers::default();
        for run in ["a", "b"] {
            servers.hear(&seen(run, 5_000, Loss::None), Millis(0));
        }
        assert_eq!(known(&servers, 0).len(), 2);
        servers.hear(&seen("c", 0, Loss::Latest), Millis(0));
        assert_eq!(known(&servers, 0), [("c".to_owned(), 0, Loss::Latest)]);
    }

    #[test]
    fn of_what_was_lost_the_most_counts_and_of_losses_of_everything_the_last() {
        let mut servers = Servers::default();
        servers.hear(&seen("a", 5_000, Loss::Latest), Millis(0));
        servers.hear(&seen("a", 4_000, Loss::All), Millis(0));
        servers.hear(&seen("a", 9_000, Loss::Latest), Millis(0));
        assert_eq!(known(&servers, 0), [("a".to_owned(), 4_000, Loss::All)]);
        servers.hear(&seen("a", 10, Loss::All), Millis(0));
        assert_eq!(known(&servers, 0), [("a".to_owned(), 10, Loss::All)]);
    }
}
