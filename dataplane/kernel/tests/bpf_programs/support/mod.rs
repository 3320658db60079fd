//! Two nodes, a client and tasks, each in a network namespace of its own, with hand-written maps.
//!
//! ```text
//! client 198.18.0.100 ── switch ── node 0 (.11): task 1 (10.0.0.6, 10.0.1.6)
//!                            └──── node 1 (.12): task 0 (10.0.0.5, 10.0.1.5)
//! ```

pub mod capture;
pub mod lab;
pub mod namespace;
pub mod packets;
pub mod traffic;
