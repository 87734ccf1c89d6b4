//! The cluster's address (VIP): adds it to this host, tells the neighbours at once, and takes it away.
//!
//! Who may hold it is decided elsewhere; this crate does what it is told, and asks the kernel what is true. An
//! address outlives the process that added it, so a node begins with [`Vip::release`].
//!
//! *Invariants*: an address that something else configured (other prefix or interface) is never touched; nothing is
//! announced after `release` returned.

mod announce;
mod host;
mod link;
mod probe;
mod vip;
mod wire;

pub use host::LinkError;
pub use probe::ProbeError;
pub use vip::{HoldError, ReleaseError, SettingsError, Vip, VipKind, VipSettings};
pub use wire::Mac;
