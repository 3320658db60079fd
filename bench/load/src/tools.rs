//! Loads and servers that are the same for all peers.

pub mod dnspace;
pub mod dnsperf;
pub mod iperf;
pub mod nginx;
pub mod pingpong;
pub mod wrk;
