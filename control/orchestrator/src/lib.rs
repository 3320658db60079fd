//! Leader loops: services into tasks, restarts, rolling updates, drains, history.
//!
//! [`Orchestrator`] decides which tasks exist and what is wanted of them. It is nearly memoryless: what a slot or a
//! service needs follows from its tasks in the state, so that a new leader (or a machine rebuilt after a refused
//! write) goes on where the old one was. [`DrainLoop`] says when a leaving task has left all load balancers,
//! [`SlowStartLoop`] how much of its share one that starts gets from them.
#![forbid(unsafe_code)]

mod dirty;
mod drain;
mod job;
mod machine;
mod network;
mod node;
mod rebalance;
mod restart;
mod rollout;
mod service;
mod slot;
mod slow_start;
mod work;

pub use dirty::is_task_dirty;
pub use drain::{DRAIN_TIMEOUT, DrainLoop, GivenUp};
pub use machine::{IdSource, Orchestrator};
pub use slow_start::SlowStartLoop;
