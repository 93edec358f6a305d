//! GPU metrics, from the exporters on the nodes to the names that dashboards ask for.
//!
//! [`run`] scrapes every configured DCGM exporter, [`dcgm`] turns its samples into rows (a device and who holds
//! it), each row's namespace becomes a tenant, and [`GpuView`] keeps the latest rows for `/metrics`. Nothing here
//! decides anything, and an exporter that is away, slow or talks nonsense costs only its own series.
//!
//! Everything is bounded: the size of a reply and of a line, how many replies are held at once, and how many
//! devices and rows the view keeps.

mod collector;
mod dcgm;
mod exposition;
mod scrape;
mod settings;
mod view;

pub use collector::GpuCollector;
pub use scrape::run;
pub use settings::{Exporter, GpuSettings};
pub use view::{DeviceRow, GpuView, NodeStatus, ScrapeResult, Snapshot};

/// The tenant of a namespace that no tenant of the configuration has.
pub const OTHER_TENANT: &str = "_other";
