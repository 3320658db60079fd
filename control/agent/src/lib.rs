//! The worker half of a node: assignments, task machine, `NodeView`.
//!
//! [`session`] talks with a manager, [`set`] keeps what it sent, [`machine`] decides what becomes of each task, [`view`]
//! says what the data plane has to know, [`worker`] runs them. `set`, `machine`, `view` and `outbox` are pure.
#![forbid(unsafe_code)]

mod agent;
mod description;
mod holdings;
mod machine;
mod outbox;
mod session;
mod set;
mod view;
mod worker;

pub use agent::{Agent, AgentHandle, AgentOptions};
pub use description::describe_host;
pub use holdings::Holdings;
pub use machine::Phase;
pub use session::{Answering, DescriptionProvider, Inspect, KeepEpoch, Manager, SessionState};
pub use set::{AssignmentSet, SetError};
pub use view::{NodeContext, ViewMaker};
