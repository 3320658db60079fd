//! Loads and servers that are the same for all peers.

pub mod dnsperf;
pub mod iperf;
pub mod nginx;
pub mod pingpong;
pub mod wrk;
