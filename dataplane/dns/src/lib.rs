//! Service DNS at 127.0.0.11 in each sandbox.
//!
//! The pure core is [`zones`] (what names there are), [`question`], [`response`], [`answer`] and [`relay`] (questions to
//! other resolvers and their answers): bytes in, bytes out.
//! Around it stands a process of its own, [`server`], that `meshd dns` runs and that outlives meshd: it holds sockets
//! *inside* the sandboxes' network namespaces, so that nothing is translated on the way, and answers from the last zones
//! that it got. [`client`] is meshd's end: it starts the process, keeps it alive and feeds it.
//!
//! Names are per network, in any spelling: a service and its aliases (virtual address, or its ready tasks), `tasks.` and
//! any of them (ready tasks, in turns), a task's name, host name and aliases, `<name>.<network>`, the ports of a service
//! (`_<port>._<protocol>.<service>`), and the reverse of all addresses. `docs/design/dns.md` has the rules.
//! Names that no network of the sandbox has go to the sandbox's resolvers or the node's, all at once; in a sandbox without
//! a way out they don't exist.
#![forbid(unsafe_code)]

pub mod answer;
pub mod client;
pub mod inspect;
pub mod protocol;
pub mod question;
pub mod relay;
pub mod response;
pub mod server;
pub mod zones;

mod launch;
#[cfg(test)]
mod testing;

pub use client::{DnsClient, DnsStatus};
pub use launch::ServerLaunch;
pub use server::{ServerError, ServerOptions, run_server, serve};
pub use zones::{
    Forwarding, NetworkZone, PortRecord, SandboxZone, TtlPolicy, ZoneMaker, Zones, zones_from_view,
};
