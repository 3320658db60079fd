//! Gossip: who of the nodes is silent and which tasks have ended, told from node to node, with or without a manager.
//!
//! It adds no node and no task: the members are those that the managers have handed out, and what gossip thinks of them can
//! only take a backend out of rotation, or give back what it took. `docs/adr/0013` says why it is made so.
//!
//! [`core`] decides and [`seal`] keeps strangers and replays out; both are pure: they take values and the time, and return
//! what is to be sent. [`service`] is their outside world: UDP, TCP, the probes of data paths, the clock.
#![forbid(unsafe_code)]

pub mod core;
pub mod seal;
pub mod service;
