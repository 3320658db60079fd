//! VNIs and subnets of networks.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use control_model::families::{address6, first_host, own_subnet6};
use control_model::object::{Cluster, Network, NetworkState};
use control_model::spec::{IpamConfig, NetworkSpec};
use control_model::validate::check_host_numbers;
use control_model::{NetworkId, Task};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use crate::subnet::{Holder, SubnetPool, overlap};

/// First VNI that is handed out (swarmkit's; below are users' own).
const VNI_FIRST: u32 = 4096;
/// Last VNI: the field has 24 bits (RFC 7348 section 5).
const VNI_LAST: u32 = (1 << 24) - 1;

/// The allocated networks and the addresses in them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Networks {
    vnis: BTreeMap<u32, NetworkId>,
    pools: BTreeMap<NetworkId, Vec<SubnetPool>>,
    subnets6: BTreeMap<NetworkId, Ipv6Network>,
}

impl Networks {
    /// Notes a network that is allocated already. Does nothing if it is known.
    pub(crate) fn load(&mut self, network: NetworkId, state: &NetworkState) {
        if self.pools.contains_key(&network) {
            return;
        }
        self.vnis.insert(state.vni, network);
        self.subnets6.extend(state.subnet6().map(|subnet6| (network, subnet6)));
        self.pools.insert(network, state.ipam.iter().filter_map(subnet_pool).collect());
    }

    /// Forgets a network with all its addresses.
    pub(crate) fn remove(&mut self, network: NetworkId) {
        self.pools.remove(&network);
        self.subnets6.remove(&network);
        self.vnis.retain(|_, holder| *holder != network);
    }

    pub(crate) fn is_allocated(&self, network: NetworkId) -> bool {
        self.pools.contains_key(&network)
    }

    /// Gives `network` the lowest free VNI and its subnets. `Err` says what is missing.
    pub(crate) fn allocate(
        &mut self,
        network: &Network,
        cluster: Option<&Cluster>,
    ) -> Result<NetworkState, String> {
        self.check_given(&network.spec.ipam)?;
        let given = |is_v4: bool| network.spec.ipam.iter().find(|ipam| ipam.subnet.is_ipv4() == is_v4);
        let pool = || cluster.ok_or("the cluster has no address pool yet");
        let v4 = match given(true) {
            Some(given) => with_gateway(given),
            None => with_gateway(&chosen(self.free_subnet(pool()?)?)),
        };
        let (vni, v6) = match given(false) {
            Some(given) => (self.free_vni(|_| true)?, Some(given.clone())),
            None if has_ipv6(&network.spec) => {
                let id = pool()?.id;
                let vni = self.free_vni(|vni| self.is_free(own_subnet6(id, vni).into()))?;
                (vni, Some(chosen(own_subnet6(id, vni).into())))
            }
            None => (self.free_vni(|_| true)?, None),
        };
        let v6 = v6.map(|v6| with_gateway6(&v4, &v6)).transpose()?;
        let state = NetworkState { vni, ipam: [v4].into_iter().chain(v6).collect() };
        self.load(network.id, &state);
        Ok(state)
    }

    /// The lowest free VNI that will do.
    fn free_vni(&self, will_do: impl Fn(u32) -> bool) -> Result<u32, String> {
        (VNI_FIRST..=VNI_LAST)
            .find(|vni| !self.vnis.contains_key(vni) && will_do(*vni))
            .ok_or_else(|| "no VXLAN network identifier is free".into())
    }

    fn check_given(&self, ipam: &[IpamConfig]) -> Result<(), String> {
        match ipam.iter().find(|given| !self.is_free(given.subnet)) {
            Some(given) => Err(format!("subnet {} overlaps with another network's", given.subnet)),
            None => Ok(()),
        }
    }

    fn is_free(&self, subnet: IpNetwork) -> bool {
        let v4 = self.subnets().map(IpNetwork::V4);
        let mut taken = v4.chain(self.subnets6.values().copied().map(IpNetwork::V6));
        !taken.any(|other| overlap(other, subnet))
    }

    /// The first subnet of the cluster's pools that no network overlaps.
    fn free_subnet(&self, cluster: &Cluster) -> Result<IpNetwork, String> {
        let mut taken: Vec<(u32, u32)> =
            self.subnets().map(|s| (u32::from(s.network()), u32::from(s.broadcast()))).collect();
        taken.sort_unstable();
        for pool in &cluster.default_address_pool {
            let IpNetwork::V4(pool) = pool else { continue };
            let size = cluster.subnet_size.clamp(pool.prefix(), 32);
            if let Some(network) = first_gap(*pool, size, &taken) {
                let subnet = Ipv4Network::new(network.into(), size).expect("a prefix length up to 32");
                return Ok(IpNetwork::V4(subnet));
            }
        }
        Err("all predefined address pools have been fully subnetted".into())
    }

    fn subnets(&self) -> impl Iterator<Item = Ipv4Network> {
        self.pools.values().flatten().map(SubnetPool::subnet)
    }

    /// An address in the network with the prefix length of its subnet; `None` when all are held.
    pub(crate) fn allocate_address(&mut self, network: NetworkId, holder: Holder) -> Option<Ipv4Network> {
        self.pools.get_mut(&network)?.iter_mut().find_map(|pool| {
            let address = pool.allocate(holder)?;
            Ipv4Network::new(address, pool.subnet().prefix()).ok()
        })
    }

    /// Notes an address that `holder` has already.
    pub(crate) fn hold_address(&mut self, network: NetworkId, address: Ipv4Addr, holder: Holder) -> bool {
        self.pool_of(network, address).is_some_and(|pool| pool.hold(address, holder))
    }

    /// Frees an address if `holder` holds it.
    pub(crate) fn free_address(&mut self, network: NetworkId, address: Ipv4Addr, holder: Holder) -> bool {
        self.pool_of(network, address).is_some_and(|pool| pool.free(address, holder))
    }

    fn pool_of(&mut self, network: NetworkId, address: Ipv4Addr) -> Option<&mut SubnetPool> {
        self.pools.get_mut(&network)?.iter_mut().find(|pool| pool.subnet().contains(address))
    }

    /// Who holds addresses in the network.
    #[cfg(test)]
    pub(crate) fn holders(&self, network: NetworkId) -> Vec<Holder> {
        self.pools.get(&network).into_iter().flatten().flat_map(SubnetPool::holders).collect()
    }

    /// Notes the addresses of a task that has not ended.
    pub(crate) fn hold_task(&mut self, task: &Task) {
        for (network, address) in addresses(task) {
            self.hold_address(network, address, Holder::Task(task.id));
        }
    }

    /// Frees the addresses of a task; whether there were any.
    pub(crate) fn free_task(&mut self, task: &Task) -> bool {
        addresses(task).fold(false, |freed, (network, address)| {
            self.free_address(network, address, Holder::Task(task.id)) || freed
        })
    }
}

fn addresses(task: &Task) -> impl Iterator<Item = (NetworkId, Ipv4Addr)> {
    task.attachments.iter().filter_map(|attachment| match attachment.address.ip() {
        IpAddr::V4(address) => Some((attachment.network, address)),
        IpAddr::V6(_) => None,
    })
}

fn subnet_pool(ipam: &IpamConfig) -> Option<SubnetPool> {
    let IpNetwork::V4(subnet) = ipam.subnet else { return None };
    let range = match ipam.range {
        Some(IpNetwork::V4(range)) => Some(range),
        _ => None,
    };
    let gateway = match ipam.gateway {
        Some(IpAddr::V4(gateway)) => Some(gateway),
        _ => None,
    };
    Some(SubnetPool::new(subnet, range, gateway))
}

/// Published ports have an IPv6 client's true address too, so the routing mesh's network always has IPv6.
fn has_ipv6(spec: &NetworkSpec) -> bool {
    spec.ipv6 || spec.ingress
}

fn chosen(subnet: IpNetwork) -> IpamConfig {
    IpamConfig { subnet, range: None, gateway: None }
}

fn with_gateway(ipam: &IpamConfig) -> IpamConfig {
    let first = match ipam.subnet {
        IpNetwork::V4(subnet) => Some(IpAddr::V4(first_host(subnet))),
        IpNetwork::V6(_) => None,
    };
    IpamConfig { gateway: ipam.gateway.or(first), ..ipam.clone() }
}

/// The IPv6 side with its gateway, which has the host number of the IPv4 one.
fn with_gateway6(v4: &IpamConfig, v6: &IpamConfig) -> Result<IpamConfig, String> {
    check_host_numbers(v4, v6).map_err(|error| error.to_string())?;
    let gateway = match (v4.subnet, v4.gateway, v6.subnet) {
        (IpNetwork::V4(subnet), Some(IpAddr::V4(gateway)), IpNetwork::V6(subnet6)) => {
            Some(IpAddr::V6(address6(subnet, subnet6, gateway)))
        }
        _ => None,
    };
    Ok(IpamConfig { gateway, ..v6.clone() })
}

/// The first address in `pool` at which a subnet of prefix length `size` overlaps none of `taken` (sorted).
fn first_gap(pool: Ipv4Network, size: u8, taken: &[(u32, u32)]) -> Option<u32> {
    let step = 1u64 << (32 - size);
    let end = u64::from(u32::from(pool.broadcast()));
    let mut candidate = u64::from(u32::from(pool.network()));
    for &(first, last) in taken {
        if candidate + step > u64::from(first) && candidate <= u64::from(last) {
            // Past this one, at the next multiple of the step.
            candidate = (u64::from(last) + 1).div_ceil(step) * step;
        }
    }
    if candidate + step - 1 <= end { u32::try_from(candidate).ok() } else { None }
}
