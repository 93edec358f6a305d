//! Plain lines of at most 100 columns; emphasis only where a person looks.

use std::io::{IsTerminal, Write, stdout};

#[derive(Clone, Copy)]
pub(super) struct Page {
    emphasis: bool,
}

impl Page {
    pub(super) fn new() -> Self {
        Self { emphasis: stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
    }

    /// A reader that left (`| head`) is no reason to fail.
    pub(super) fn line(self, text: &str) {
        let _ = writeln!(stdout(), "{text}");
    }

    pub(super) fn title(self, text: &str) {
        self.line(&format!("\n{}\n", self.bold(text)));
    }

    /// The head of a table.
    pub(super) fn head(self, text: &str) {
        self.line(&self.bold(text));
    }

    /// A line that tells of a refusal or of something that did not hold.
    pub(super) fn warning(self, text: &str) {
        if self.emphasis {
            self.line(&format!("\x1b[33m{text}\x1b[0m"));
        } else {
            self.line(text);
        }
    }

    fn bold(self, text: &str) -> String {
        if self.emphasis { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }
}
