//! Whole clusters in virtual time, by seeds.
//!
//! What decides is the product's own: the leader's loops and their rounds, who lives and who doesn't, the dispatcher's
//! sessions, streams and checks, the agents' desks and outboxes, the store. What they run over is a model: clocks, the
//! network ([`net`]), the replicated log ([`log`]), runtimes and kernels ([`runtime`]). One event happens after the
//! other ([`queue`]), chance comes from the seed alone, and after every step laws are checked ([`laws`]).
//!
//! [`raft`] is apart: the real openraft instead of the model of the log.
//!
//! Not in here: TLS and gRPC, the files of consensus, containers, and the kernel itself.
#![forbid(unsafe_code)]

mod act;
mod agent;
mod event;
mod faults;
mod gossip;
mod host;
mod laws;
mod leading;
mod log;
mod manager;
mod mutation;
mod net;
mod queue;
pub mod raft;
mod random;
mod run;
mod runtime;
mod scale;
mod scenario;
mod world;

pub use mutation::Mutation;
pub use run::{Outcome, Run};
pub use scale::{ScaleRun, Span};
pub use scenario::Scenario;
pub use world::Broken;
