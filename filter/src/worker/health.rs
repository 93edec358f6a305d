//! Whether the service answers, told to the log once for each change and not for each call.

use log::{info, warn};

#[derive(Debug)]
pub(crate) struct Health {
    is_away: bool,
    on_failure: &'static str,
    on_return: &'static str,
}

impl Health {
    pub(crate) fn new(on_failure: &'static str, on_return: &'static str) -> Self {
        Self { is_away: false, on_failure, on_return }
    }

    pub(crate) fn answered(&mut self) {
        if std::mem::take(&mut self.is_away) {
            info!("{}", self.on_return);
        }
    }

    pub(crate) fn failed(&mut self) {
        if !std::mem::replace(&mut self.is_away, true) {
            warn!("{}", self.on_failure);
        }
    }
}
