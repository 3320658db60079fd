//! Reading the maps and hooks back. A row that this version would not have written reads as absent or under a name that
//! nobody wants: then it is written again, or removed.

use std::collections::BTreeMap;

use dataplane_model::kernel_state::{
    Endpoint, Hook, HookTarget, LinkName, Owner, Place, Ring, Settings, Singleton, Vnis,
};
use dataplane_model::{KernelState, SandboxId, Vni};
use ebpf_abi::NodeConfig;

use super::links::Links;
use super::{LinuxKernel, rows};
use crate::bpf::Tables;
use crate::net::namespace::{self, Namespace};
use crate::seam::KernelError;

/// What the names of sandboxes and their cookies are, both ways.
type Cookies = Vec<(SandboxId, u64)>;

impl LinuxKernel {
    /// Fills the tables that live in BPF. `state.sandboxes` is known already; `behind` are the namespace ids of links' other
    /// ends.
    pub(super) fn observe_bpf(
        &mut self,
        behind: BTreeMap<u32, u32>,
        state: &mut KernelState,
    ) -> Result<(), KernelError> {
        let links = Links::read(behind)?;
        let cookies = self.cookies(state.sandboxes.keys())?;
        let bpf = self.bpf()?;
        services(&bpf.tables, state).map_err(|error| KernelError::of(&error))?;
        places(&bpf.tables, &links, state).map_err(|error| KernelError::of(&error))?;
        sandboxes(&bpf.tables, &cookies, state).map_err(|error| KernelError::of(&error))?;
        let config = bpf.tables.config.get().map_err(|error| KernelError::of(&error))?;
        for pin in bpf.hooks.attached().map_err(|error| KernelError::of(&error))? {
            let target =
                pin.ifindex.map_or(HookTarget::CgroupRoot, |index| HookTarget::Interface(links.name(index)));
            let hook = Hook { program: rows::program_back(pin.program), target };
            state.hooks.insert(hook, pin.mode);
        }
        if let Some(settings) = settings(&config, &links)
            && self.config(&settings)? == config
        {
            state.settings.insert(Singleton, settings);
        }
        Ok(())
    }

    fn cookies<'a>(&self, ids: impl Iterator<Item = &'a SandboxId>) -> Result<Cookies, KernelError> {
        let mut cookies = Vec::new();
        for id in ids {
            let namespace =
                Namespace::open(&self.net.netns_path(id)).map_err(|error| KernelError::of(&error))?;
            if let Some(namespace) = namespace {
                cookies.push((id.clone(), namespace.cookie().map_err(|error| KernelError::of(&error))?));
            }
        }
        Ok(cookies)
    }

    /// The row of this node in the maps.
    pub(super) fn config(&self, settings: &Settings) -> Result<NodeConfig, KernelError> {
        let flags = if self.xdp_redirects { ebpf_abi::table::CONFIG_XDP_REDIRECT } else { 0 };
        Ok(NodeConfig {
            netns_cookie: namespace::own_cookie().map_err(|error| KernelError::of(&error))?,
            vtep: settings.vtep.into(),
            vxlan_ifindex: super::links::existing(&settings.vxlan_device)?,
            ingress_vni: settings.ingress.map_or(0, Vni::get),
            uplink_ifindex: super::links::existing(&settings.uplink)?,
            uplink_mtu: settings.underlay_mtu_bytes,
            flags,
            vxlan_port: ebpf_abi::Port::new(settings.vxlan_port),
            reserved: [0; 2],
        })
    }
}

/// `None` while nothing is set, or if an interface is gone.
fn settings(config: &NodeConfig, links: &Links) -> Option<Settings> {
    if config.vtep.is_unspecified() {
        return None;
    }
    let exists = |name: &LinkName| super::links::index_of(name).is_some() && !name.as_str().starts_with('#');
    let (vxlan_device, uplink) = (links.name(config.vxlan_ifindex), links.name(config.uplink_ifindex));
    (exists(&vxlan_device) && exists(&uplink)).then(|| Settings {
        vtep: config.vtep.into(),
        vxlan_port: config.vxlan_port.get(),
        vxlan_device,
        uplink,
        ingress: Vni::new(config.ingress_vni).filter(|vni| vni.get() != 0),
        underlay_mtu_bytes: config.uplink_mtu,
    })
}

fn services(tables: &Tables, state: &mut KernelState) -> Result<(), crate::bpf::TableError> {
    for key in tables.rings.keys()? {
        let Some((named, places)) = rows::ring_key_back(key).zip(tables.rings.places(&key)?) else {
            continue;
        };
        state.rings.insert(named, Ring(places.into_iter().map(Into::into).collect()));
    }
    for (key, row) in tables.frontends.rows()? {
        if let Some(row) = rows::frontend_back(row) {
            state.frontends.insert(rows::frontend_key_back(key), row);
        }
    }
    for (key, ring) in tables.vips.rows()? {
        if let Some((key, ring)) = rows::vip_key_back(key).zip(rows::ring_key_back(ring)) {
            state.vips.insert(key, ring);
        }
    }
    for (key, row) in tables.target_ports.rows()? {
        if let Some(row) = rows::target_port_back(row) {
            state.ports.insert(rows::port_key_back(key), row);
        }
    }
    Ok(())
}

fn places(tables: &Tables, links: &Links, state: &mut KernelState) -> Result<(), crate::bpf::TableError> {
    for (vtep, row) in tables.peers.rows()? {
        state.peers.insert(vtep.into(), rows::peer_back(row));
    }
    for (address, vtep) in tables.address_owners.rows()? {
        state.owners.insert(address.into(), rows::vtep_back(vtep).map_or(Owner::ThisNode, Owner::Node));
    }
    for (vni, row) in tables.prefixes6.rows()? {
        if let Some((vni, row)) = Vni::new(vni).zip(rows::prefix6_back(&row)) {
            state.prefixes6.insert(vni, row);
        }
    }
    for (key, row) in tables.endpoints.rows()? {
        let Some((key, serves)) = rows::endpoint_key_back(key).zip(rows::serves_back(row.flags)) else {
            continue;
        };
        let place =
            rows::vtep_back(row.vtep).map_or_else(|| Place::Local(links.name(row.ifindex)), Place::Remote);
        state.endpoints.insert(key, Endpoint { mac: rows::mac_back(row.mac), place, serves });
    }
    for (index, row) in tables.attachments.rows()? {
        if let Some(row) = rows::attachment_back(&row, links.sandbox(index)) {
            state.attachments.insert(links.name(index), row);
        }
    }
    Ok(())
}

fn sandboxes(
    tables: &Tables,
    cookies: &Cookies,
    state: &mut KernelState,
) -> Result<(), crate::bpf::TableError> {
    for (cookie, row) in tables.sandboxes.rows()? {
        let owner = cookies.iter().find(|(_, of)| *of == cookie).map(|(id, _)| id.clone());
        let owner = owner.unwrap_or_else(|| SandboxId(format!("#{cookie}")));
        let vnis = row.networks().iter().filter_map(|vni| Vni::new(*vni)).collect();
        state.cookies.insert(owner, Vnis(vnis));
    }
    Ok(())
}
