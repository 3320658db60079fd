//! The BPF programs, in the kernel: single packets, and whole walks between two nodes.
#![expect(clippy::unwrap_used, reason = "a test that can't be set up has failed")]

mod bulk;
mod clients6;
mod detour;
mod direct;
mod drift;
mod flood;
mod harness;
mod inspect;
mod live;
mod mtu;
mod nested;
mod overlay6;
mod sctp;
mod support;
mod task;
mod task6;
mod trace;
mod tunnel;
mod underlay6;
mod upgrade;
mod uplink;
mod v4_only;
mod walk;
mod watch;
