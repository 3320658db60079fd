//! Pure planning: what this node's kernel should hold for a [`NodeView`](dataplane_model::NodeView), and the steps that
//! lead there. The same view and facts give the same plan on every run; nothing here asks the kernel, a clock or chance.
#![forbid(unsafe_code)]

mod claims;
pub mod delta;
pub mod facts;
mod hooks;
pub mod maglev;
mod plan;
mod planner;
mod resets;
mod sandboxes;
mod services;
#[cfg(test)]
mod tests;

pub use delta::steps;
pub use facts::{Forwarding6, IngressHook, NodeFacts, TcAttach, Uplink};
pub use plan::{Plan, PlanError, plan};
pub use planner::Planner;
pub use resets::{resets, strays};
