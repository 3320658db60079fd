//! What a manager does: the leader's loops, the dispatcher, the certificate authority's server, and the control
//! operations behind the API. Runs over any [`control_store::ReplicatedStore`].
#![forbid(unsafe_code)]

pub mod assignments;
pub mod ca_server;
pub mod clock;
pub mod control;
#[cfg(test)]
mod decoders;
pub mod dispatcher;
pub mod entries;
pub mod gossip_keys;
mod inspector;
pub mod leader;
mod leading;
mod left_behind;
pub mod liveness;
pub mod loops;
mod manager;
pub mod roles;
pub mod root_rotation;
#[cfg(test)]
mod testing;

pub use dispatcher::AskError;
pub use inspector::Inspector;
pub use leading::unending;
pub use liveness::watcher::Senses;
pub use manager::{Manager, Options};
