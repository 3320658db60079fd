//! [`KernelState`]: what this node's kernel should hold, or does hold, as ordered tables of small rows. Two states are
//! equal when the kernel has converged; [`Op`]s lead from one to the other.
//!
//! Rows name interfaces and sandboxes, never interface indexes or namespace cookies: those are facts of one boot, found
//! when a row is applied or observed.

mod reset;
mod rows;
mod table;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

pub use reset::SocketReset;
pub use rows::{
    AttachmentRole, AttachmentRow, Device, Dual, Endpoint, EndpointKey, Frontend, FrontendKey, Hook,
    HookMode, HookTarget, Leg, Leg6, LinkName, NodeRoute, Owner, PacketFilter, PeerRow, Place, PortKey,
    Present, Program, Ring, RingKey, SandboxNet, Settings, Singleton, TargetPort, VipKey, Vnis,
    protocol_name,
};
pub use table::Change;
use table::{changes, differences, write_table};

use crate::inspect::Difference;
use crate::table::{Table, remove_rows};
use crate::view::{SandboxId, Vni};

/// Declares every table once. The order is the order in which rows are made: a row comes after those that it refers
/// to. Removal goes the other way.
macro_rules! tables {
    ($( $(#[$doc:meta])* $field:ident : $op:ident ( $key:ty => $value:ty ) ),* $(,)?) => {
        /// All of the kernel that is ours.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct KernelState {
            $( $(#[$doc])* pub $field: Table<$key, $value>, )*
        }

        /// One step towards a wanted state. Idempotent: removing what is absent is success.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Op {
            $( $(#[$doc])* $op(Change<$key, $value>), )*
        }

        impl KernelState {
            /// The steps from `self` to `wanted`: what is referred to is made first, what is gone is removed last.
            pub fn ops_to(&self, wanted: &Self) -> Vec<Op> {
                let mut puts = Vec::new();
                let mut deletes = Vec::new();
                $( changes(&self.$field, &wanted.$field, &mut puts, &mut deletes, Op::$op); )*
                deletes.reverse();
                puts.append(&mut deletes);
                puts
            }

            /// The rows of `self` that are not as in `wanted`, table by table in the order in which rows are made.
            pub fn differences(&self, wanted: &Self) -> Vec<Difference> {
                let mut found = Vec::new();
                $( differences(stringify!($field), &self.$field, &wanted.$field, &mut found); )*
                found
            }

            /// Rows of all tables.
            pub fn n_rows(&self) -> usize {
                0 $( + self.$field.len() )*
            }

            /// What the state is once `op` is done.
            pub fn record(&mut self, op: &Op) {
                match op {
                    $( Op::$op(change) => change.record(&mut self.$field), )*
                }
            }
        }

        impl Op {
            /// Takes something away.
            pub fn is_delete(&self) -> bool {
                match self {
                    $( Self::$op(change) => matches!(change, Change::Delete(_)), )*
                }
            }
        }

        impl fmt::Display for KernelState {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $( write_table(f, stringify!($field), &self.$field)?; )*
                Ok(())
            }
        }

        impl fmt::Display for Op {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $( Self::$op(change) => change.write(f, stringify!($field)), )*
                }
            }
        }
    };
}

tables! {
    /// Our interfaces in the node's own namespace.
    devices: Device(LinkName => Device),
    /// Interfaces whose IPv4 packets the kernel may forward.
    forwarding: Forwarding(LinkName => Present),
    /// The same of IPv6, where the kernel can say it of single interfaces.
    forwarding6: Forwarding6(LinkName => Present),
    /// Routes of the node itself.
    routes: Route(IpNetwork => NodeRoute),
    /// The nftables table.
    filter: Filter(Singleton => PacketFilter),
    /// What all BPF programs know of this node.
    settings: Settings(Singleton => Settings),
    /// Network namespaces, with the links between them and the node.
    sandboxes: Sandbox(SandboxId => SandboxNet),
    /// Nodes that tunnelled packets are taken from.
    peers: Peer(IpAddr => PeerRow),
    /// Whose address is it? Replies of published ports go there.
    owners: Owner(IpAddr => Owner),
    /// Networks whose endpoints have IPv6 addresses too, and the gateway bridge.
    prefixes6: Prefix6(Vni => Dual),
    /// Where each address of each network lives.
    endpoints: Endpoint(EndpointKey => Endpoint),
    /// Published port → target port, on the node of the task.
    ports: Port(PortKey => TargetPort),
    /// Which networks a process in the sandbox reaches virtual addresses of.
    cookies: Cookie(SandboxId => Vnis),
    /// Maglev rings.
    rings: Ring(RingKey => Ring),
    /// Virtual address → ring.
    vips: Vip(VipKey => RingKey),
    /// Published address and port → ring.
    frontends: Frontend(FrontendKey => Frontend),
    /// What may be sent from the host end of a sandbox's link.
    attachments: Attachment(LinkName => AttachmentRow),
    /// Programs and where they hang.
    hooks: Hook(Hook => HookMode),
}

impl Op {
    /// The step takes traffic away from a row that the kernel holds: while it is not done, new flows may go to a task that the
    /// wanted state has let go of. Rows that only come lead to nobody who leaves, and an endpoint is not asked as long as it
    /// does not serve.
    pub fn lets_go(&self, held: &KernelState) -> bool {
        match self {
            Self::Ring(change) => held.rings.contains_key(change.key()),
            Self::Vip(change) => held.vips.contains_key(change.key()),
            Self::Frontend(change) => held.frontends.contains_key(change.key()),
            Self::Endpoint(Change::Put(key, row)) => {
                !row.serves && held.endpoints.get(key).is_some_and(|held| held.serves)
            }
            Self::Endpoint(Change::Delete(key)) => held.endpoints.contains_key(key),
            _ => false,
        }
    }

    /// The sandbox, or the host end of a sandbox's link, that the step is about.
    pub fn subject(&self) -> Option<Subject<'_>> {
        match self {
            Self::Sandbox(change) => Some(Subject::Sandbox(change.key())),
            Self::Cookie(change) => Some(Subject::Sandbox(change.key())),
            Self::Attachment(change) => Some(Subject::Link(change.key())),
            Self::Endpoint(Change::Put(_, Endpoint { place: Place::Local(link), .. })) => {
                Some(Subject::Link(link))
            }
            Self::Hook(change) => match &change.key().target {
                HookTarget::Interface(link) => Some(Subject::Link(link)),
                HookTarget::CgroupRoot => None,
            },
            _ => None,
        }
    }
}

/// What a step is about, if it is about one sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'a> {
    Sandbox(&'a SandboxId),
    Link(&'a LinkName),
}

impl KernelState {
    /// Forgets the rows that are bound to the identity of the sandbox's links and namespace. When the sandbox is made
    /// again its links have other indexes, so these rows must be written again although they read the same.
    pub fn forget_dependents_of_sandbox(&mut self, id: &SandboxId) {
        self.cookies.remove(id);
        let Some(sandbox) = self.sandboxes.get(id) else { return };
        let hosts: Vec<LinkName> = sandbox.legs.iter().map(|leg| leg.host.clone()).collect();
        for host in &hosts {
            self.forget_dependents_of_link(host);
        }
    }

    /// The same for one interface. Endpoints are found by what may be sent from the link: all of them are never looked at.
    pub fn forget_dependents_of_link(&mut self, link: &LinkName) {
        if let Some(key) = self.endpoint_behind(link) {
            self.endpoints.remove(&key);
        }
        self.forwarding.remove(link);
        self.forwarding6.remove(link);
        self.attachments.remove(link);
        remove_rows(&mut self.hooks, |hook, _| hook.target == HookTarget::Interface(link.clone()));
        remove_rows(&mut self.routes, |_, route| route.device == *link);
        if self.settings.values().any(|settings| settings.mentions(link)) {
            self.settings.clear();
        }
    }

    /// The endpoint whose row leads to the host end `link`, as the row of the attachment there says.
    pub fn endpoint_behind(&self, link: &LinkName) -> Option<EndpointKey> {
        let row = self.attachments.get(link)?;
        let key = EndpointKey { vni: row.vni, address: row.address.ip() };
        let leads_there = |endpoint: &Endpoint| matches!(&endpoint.place, Place::Local(host) if host == link);
        self.endpoints.get(&key).is_some_and(leads_there).then_some(key)
    }
}
