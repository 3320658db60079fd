//! The worker half of a node: assignments, task machine, `NodeView`.
//!
//! [`session`] talks with a manager, [`set`] keeps what it sent, [`machine`] decides what becomes of each task, [`view`]
//! says what the data plane has to know, [`said`] what the node's gossip has, [`desk`] puts them together, [`worker`] runs
//! it. All but `session` and `worker` are pure.
#![forbid(unsafe_code)]

mod agent;
mod description;
mod desk;
mod holdings;
mod local;
mod machine;
mod outbox;
mod said;
mod session;
mod set;
mod view;
mod worker;

pub use agent::{Agent, AgentHandle, AgentOptions};
pub use description::describe_host;
pub use desk::Desk;
pub use holdings::Holdings;
pub use machine::{Action, Input, Phase};
pub use outbox::Outbox;
pub use session::{DescriptionProvider, Inspect, KeepEpoch, LongAnswer, Manager, Managers, SessionState};
pub use set::{AssignmentSet, SetError};
pub use view::{NodeContext, ViewMaker};
