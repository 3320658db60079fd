//! Leader loop: gives networks, services and tasks their VNIs, subnets, addresses and ports.
//!
//! [`Allocator`] is a pure machine: events mark what is dirty, [`Allocator::handle`] looks at that alone and
//! returns the writes. What can't be given yet (an address, a port) is tried again when something was freed.
#![forbid(unsafe_code)]

mod check;
mod machine;
mod network;
mod ports;
mod subnet;
#[cfg(test)]
mod tests;

pub use check::{check_beside_pool, check_ports, check_subnets};
pub use machine::Allocator;
