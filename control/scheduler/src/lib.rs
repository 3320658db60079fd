//! Leader loop: places pending tasks on nodes and explains refusals.
//!
//! [`Scheduler`] is a pure machine. Tasks of one service and spec version are placed together: filters leave the
//! nodes that may run them, spread preferences cut these into a tree, and each leaf fills the node that has the
//! fewest tasks of the service, then the fewest of all. Load is not considered, running tasks are never moved.
#![forbid(unsafe_code)]

mod filter;
mod machine;
mod node_info;
mod nodes;
mod spread;
#[cfg(test)]
mod tests;

pub use machine::Scheduler;
