//! The tables that a trace asks, row by row: the pinned maps, or fixtures.

use std::collections::BTreeMap;

use ebpf_abi::{
    Attachment, CachedBackend, Endpoint, EndpointKey, FlowTuple, ForwardFlow, ForwardKey, Frontend,
    FrontendKey, Ip, Ip4, NodeConfig, Prefix6, ReplyFlow, ReplyKey, RingKey, SandboxNetworks, TargetPort,
    TargetPortKey, VipKey,
};

use crate::bpf::{TableError, Tables};

/// One look-up per table; `None` for a row that is not there.
pub trait Lookup {
    fn config(&self) -> Result<NodeConfig, TableError>;
    fn frontend(&self, key: &FrontendKey) -> Result<Option<Frontend>, TableError>;
    fn cached(&self, tuple: &FlowTuple) -> Result<Option<CachedBackend>, TableError>;
    /// The places of the ring in use.
    fn places(&self, ring: &RingKey) -> Result<Option<Vec<Ip4>>, TableError>;
    fn endpoint(&self, key: &EndpointKey) -> Result<Option<Endpoint>, TableError>;
    fn target(&self, key: &TargetPortKey) -> Result<Option<TargetPort>, TableError>;
    fn flow(&self, key: &ForwardKey) -> Result<Option<ForwardFlow>, TableError>;
    fn reply(&self, key: &ReplyKey) -> Result<Option<ReplyFlow>, TableError>;
    fn is_peer(&self, vtep: Ip) -> Result<bool, TableError>;
    /// The tunnel end of the node that owns an address; unspecified for this node.
    fn owner(&self, address: Ip) -> Result<Option<Ip>, TableError>;
    fn vip(&self, key: &VipKey) -> Result<Option<RingKey>, TableError>;
    fn sandbox(&self, cookie: u64) -> Result<Option<SandboxNetworks>, TableError>;
    /// All of this node, by interface.
    fn attachments(&self) -> Result<BTreeMap<u32, Attachment>, TableError>;
    fn prefix6(&self, vni: u32) -> Result<Option<Prefix6>, TableError>;

    /// Whose address it is in a network: as the programs' `maps::name`.
    fn name(&self, vni: u32, address: Ip) -> Result<Option<Ip4>, TableError> {
        if address.is_v4() {
            return Ok(Some(address.low()));
        }
        Ok(self.prefix6(vni)?.and_then(|prefix| prefix.name(address)))
    }

    /// The address of a name in a network: as the programs' `maps::address`.
    fn address(&self, vni: u32, name: Ip4, is_v4: bool) -> Result<Option<Ip>, TableError> {
        if is_v4 {
            return Ok(Some(name.into()));
        }
        Ok(self.prefix6(vni)?.map(|prefix| prefix.address(name)))
    }
}

impl Lookup for Tables {
    fn config(&self) -> Result<NodeConfig, TableError> {
        self.config.get()
    }

    fn frontend(&self, key: &FrontendKey) -> Result<Option<Frontend>, TableError> {
        self.frontends.get(key)
    }

    fn cached(&self, tuple: &FlowTuple) -> Result<Option<CachedBackend>, TableError> {
        self.flow_cache.get(tuple)
    }

    fn places(&self, ring: &RingKey) -> Result<Option<Vec<Ip4>>, TableError> {
        self.rings.places(ring)
    }

    fn endpoint(&self, key: &EndpointKey) -> Result<Option<Endpoint>, TableError> {
        self.endpoints.get(key)
    }

    fn target(&self, key: &TargetPortKey) -> Result<Option<TargetPort>, TableError> {
        self.target_ports.get(key)
    }

    fn flow(&self, key: &ForwardKey) -> Result<Option<ForwardFlow>, TableError> {
        self.flows.get(key)
    }

    fn reply(&self, key: &ReplyKey) -> Result<Option<ReplyFlow>, TableError> {
        self.replies.get(key)
    }

    fn is_peer(&self, vtep: Ip) -> Result<bool, TableError> {
        Ok(self.peers.get(&vtep)?.is_some())
    }

    fn owner(&self, address: Ip) -> Result<Option<Ip>, TableError> {
        self.address_owners.get(&address)
    }

    fn vip(&self, key: &VipKey) -> Result<Option<RingKey>, TableError> {
        self.vips.get(key)
    }

    fn sandbox(&self, cookie: u64) -> Result<Option<SandboxNetworks>, TableError> {
        self.sandboxes.get(&cookie)
    }

    fn attachments(&self) -> Result<BTreeMap<u32, Attachment>, TableError> {
        self.attachments.rows()
    }

    fn prefix6(&self, vni: u32) -> Result<Option<Prefix6>, TableError> {
        self.prefixes6.get(&vni)
    }
}
