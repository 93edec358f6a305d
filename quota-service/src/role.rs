//! What a process is for.

/// *Gates* decide beside Envoy, and have no rights beyond that; one *control* process watches the GPUs and shows them.
/// A process on its own is both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Decide about calls; leave the GPUs to the control process.
    Gate,
    /// Watch the GPUs and change what is in force for all; decide nothing, and hold no slots.
    Control,
    /// Everything, for a machine or a gateway that has one process.
    #[default]
    Both,
}

impl Role {
    #[must_use]
    pub fn decides(self) -> bool {
        self != Role::Control
    }

    #[must_use]
    pub fn watches_gpus(self) -> bool {
        self != Role::Gate
    }
}
