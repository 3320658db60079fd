//! The vocabulary of the control plane: ids, specs, objects, the task state machine, changes, assignments.
//!
//! Plain values only. No sockets, clocks, threads or randomness: new ids and the time are given by the caller.
#![forbid(unsafe_code)]

pub mod assignment;
pub mod authority;
pub mod change;
pub mod constraint;
pub mod crowd;
pub mod dependency;
pub mod even_clock;
pub mod executor;
pub mod families;
pub mod generic;
pub mod gossip;
pub mod id;
pub mod identity;
pub mod log_driver;
pub mod object;
pub mod output;
pub mod probe;
pub mod rebalance;
pub mod shared;
pub mod slow_start;
pub mod spec;
pub mod standalone;
pub mod task_state;
pub mod template;
pub mod time;
pub mod validate;
pub mod validate_dependency;
pub mod validate_image;

pub use assignment::{Assignment, AssignmentKey, AssignmentUpdate, Generation};
pub use change::{Change, Entry, Object, ObjectRef, RequestId};
pub use dependency::{Dependency, DependencyKind};
pub use even_clock::EvenClock;
pub use id::{ClusterId, DependencyId, NetworkId, NodeId, ServiceId, TaskId};
pub use identity::PeerIdentity;
pub use object::{Cluster, Meta, Network, Node, Service, Task};
pub use output::{OutputBatch, OutputLine, OutputPiece, OutputPosition, OutputQuery, OutputStream};
pub use shared::Shared;
pub use task_state::TaskState;
pub use time::Timestamp;
