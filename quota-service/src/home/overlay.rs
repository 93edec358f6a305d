//! What operators have set at run time, as all replicas have it.

use super::error::HomeError;
use sluice_policy::schedule::Change;

/// The overlay of one version.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overlay {
    /// Grows with every change, also with its deletion; 0 where none was ever set.
    pub version: u64,
    pub change: Option<Change>,
}

/// Its key, and the channel on which a new version is told.
pub(super) const KEY: &str = "sluice:overlay";

impl Overlay {
    /// From what is stored: nothing at all, or a version and a change, which is empty where the overlay was deleted.
    pub(super) fn parse(version: Option<&str>, change: Option<&str>) -> Result<Self, HomeError> {
        let malformed = || HomeError::Malformed(format!("{KEY}: version {version:?}, change {change:?}"));
        let change = match change {
            None | Some("") => None,
            Some(text) => Some(serde_json::from_str(text).map_err(|_| malformed())?),
        };
        Ok(Self { version: version.unwrap_or("0").parse().map_err(|_| malformed())?, change })
    }

    /// The text of a change; empty without one.
    pub(super) fn text(change: Option<&Change>) -> String {
        // What goes in here is made of texts and whole numbers, of which all have a JSON.
        change.map(|change| serde_json::to_string(change).unwrap_or_default()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_read_back_and_what_nobody_stored_is_told() {
        let change = Change { weights: Some([9; 10]), ..Change::default() };
        let text = Overlay::text(Some(&change));
        assert_eq!(Overlay::parse(Some("3"), Some(&text)).unwrap(), Overlay { version: 3, change: Some(change) });
        assert_eq!(Overlay::parse(Some("4"), Some("")).unwrap(), Overlay { version: 4, change: None });
        assert_eq!(Overlay::parse(None, None).unwrap(), Overlay::default());
        let error = Overlay::parse(Some("4"), Some("{")).unwrap_err().to_string();
        assert!(error.contains("sluice:overlay"), "{error}");
    }
}
