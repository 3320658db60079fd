//! Writing rows into the maps, and programs into their hooks.

use dataplane_model::Vni;
use dataplane_model::kernel_state::{
    AttachmentRow, Change, Endpoint, Hook, HookMode, HookTarget, LinkName, Owner, Place, Ring, Vnis,
};
use dataplane_model::{Op, SandboxId};
use ebpf_abi::{Ip, Ip4, NodeConfig, SandboxNetworks};

use super::{LinuxKernel, links, rows};
use crate::bpf::{self, HookPin, Replaced, Tables};
use crate::net::namespace::Namespace;
use crate::seam::KernelError;

/// Every mode that a hook may have been made in: what is removed is known by its program and place alone.
const MODES: [HookMode; 5] =
    [HookMode::Tcx, HookMode::Clsact, HookMode::XdpNative, HookMode::XdpGeneric, HookMode::Cgroup];

/// Writes or removes one row of a map.
macro_rules! row {
    ($table:expr, $change:expr, $key:expr, $value:expr) => {
        match $change {
            Change::Put(key, value) => $table.insert(&$key(*key), &$value(*value)),
            Change::Delete(key) => $table.remove(&$key(*key)),
        }
        .map_err(|error| KernelError::of(&error))
    };
}

impl LinuxKernel {
    /// Takes a step that is not the network's.
    pub(super) async fn apply_bpf(&mut self, op: &Op) -> Result<(), KernelError> {
        match op {
            Op::Settings(Change::Put(_, settings)) => {
                let config = self.config(settings)?;
                return self.set_config(&config);
            }
            Op::Settings(Change::Delete(_)) => return self.forget_config(),
            Op::Cookie(change) => return self.set_cookie(change),
            Op::Hook(change) => return self.set_hook(change),
            Op::Attachment(Change::Put(link, row)) => return self.put_attachment(link, row).await,
            _ => {}
        }
        let tables = &mut self.bpf()?.tables;
        match op {
            Op::Peer(change) => row!(tables.peers, change, Ip::from, rows::peer),
            Op::Owner(change) => {
                row!(tables.address_owners, change, Ip::from, owner)
            }
            Op::Prefix6(change) => row!(tables.prefixes6, change, Vni::get, rows::prefix6),
            Op::Endpoint(Change::Put(key, row)) => tables
                .endpoints
                .insert(&rows::endpoint_key(*key), &endpoint(row)?)
                .map_err(|error| KernelError::of(&error)),
            Op::Endpoint(Change::Delete(key)) => {
                tables.endpoints.remove(&rows::endpoint_key(*key)).map_err(|error| KernelError::of(&error))
            }
            Op::Port(change) => row!(tables.target_ports, change, rows::port_key, rows::target_port),
            Op::Ring(Change::Put(key, ring)) => put_rings(tables, &[(rows::ring_key(*key), places(ring))]),
            Op::Ring(Change::Delete(key)) => {
                tables.rings.remove(&rows::ring_key(*key)).map_err(|error| KernelError::of(&error))
            }
            Op::Vip(change) => row!(tables.vips, change, rows::vip_key, rows::ring_key),
            Op::Frontend(change) => row!(tables.frontends, change, rows::frontend_key, rows::frontend),
            // A link that is gone has left its row under an index; the next look finds and removes it.
            Op::Attachment(Change::Delete(link)) => links::index_of(link).map_or(Ok(()), |index| {
                tables.attachments.remove(&index).map_err(|error| KernelError::of(&error))
            }),
            other => Err(KernelError(format!("no part of the kernel takes the step {other}"))),
        }
    }

    /// Takes steps that are all on rings, and all of one kind; does nothing with others. After an error some are taken,
    /// and all can be taken again one by one.
    pub(super) fn apply_rings(&mut self, ops: &[Op]) -> Result<(), KernelError> {
        let (mut puts, mut deletes) = (Vec::new(), Vec::new());
        for op in ops {
            match op {
                Op::Ring(Change::Put(key, ring)) => puts.push((rows::ring_key(*key), places(ring))),
                Op::Ring(Change::Delete(key)) => deletes.push(rows::ring_key(*key)),
                other => return Err(KernelError(format!("{other} is on another table"))),
            }
        }
        let tables = &mut self.bpf()?.tables;
        put_rings(tables, &puts)?;
        if deletes.is_empty() {
            return Ok(());
        }
        tables.rings.remove_all(&deletes).map_err(|error| KernelError::of(&error))
    }

    async fn put_attachment(&mut self, link: &LinkName, row: &AttachmentRow) -> Result<(), KernelError> {
        let sandbox = self.net.sandbox_behind(link).await.map_err(|error| KernelError::of(&error))?;
        let (index, row) = (links::existing(link)?, rows::attachment(row, sandbox));
        self.bpf()?.tables.attachments.insert(&index, &row).map_err(|error| KernelError::of(&error))
    }

    fn set_config(&mut self, config: &NodeConfig) -> Result<(), KernelError> {
        self.bpf()?.tables.config.set(config).map_err(|error| KernelError::of(&error))
    }

    /// All but the uplink, which [`LinuxKernel::last_uplink`] is asked for until the pins go.
    fn forget_config(&mut self) -> Result<(), KernelError> {
        let uplink_ifindex = self.last_uplink().unwrap_or(0);
        self.set_config(&NodeConfig { uplink_ifindex, ..NodeConfig::default() })
    }

    /// Before anything of it is changed: who dies between leaves a trace to him who takes it away.
    pub(super) fn note_uplink(&mut self, name: &LinkName) -> Result<(), KernelError> {
        let is_ours = [LinkName::gateway_bridge(), LinkName::vxlan()].contains(name);
        if is_ours || self.last_uplink().is_some() {
            return Ok(());
        }
        let uplink_ifindex = links::existing(name)?;
        self.set_config(&NodeConfig { uplink_ifindex, ..NodeConfig::default() })
    }

    fn set_cookie(&mut self, change: &Change<SandboxId, Vnis>) -> Result<(), KernelError> {
        let Some(cookie) = self.cookie(change.key())? else {
            return match change {
                Change::Put(id, _) => Err(KernelError(format!("the namespace of {id} is gone"))),
                Change::Delete(_) => Ok(()),
            };
        };
        let table = &mut self.bpf()?.tables.sandboxes;
        let written = match change {
            Change::Put(_, Vnis(vnis)) => {
                let vnis: Vec<u32> = vnis.iter().map(|vni| vni.get()).collect();
                let row = SandboxNetworks::new(&vnis)
                    .ok_or_else(|| KernelError(format!("{} networks are too many", vnis.len())))?;
                table.insert(&cookie, &row)
            }
            Change::Delete(_) => table.remove(&cookie),
        };
        written.map_err(|error| KernelError::of(&error))
    }

    /// `None` if the namespace is gone.
    fn cookie(&self, id: &SandboxId) -> Result<Option<u64>, KernelError> {
        if let Some(cookie) = id.0.strip_prefix('#') {
            return Ok(cookie.parse().ok());
        }
        let namespace = Namespace::open(&self.net.netns_path(id)).map_err(|error| KernelError::of(&error))?;
        let cookie = namespace.map(|namespace| namespace.cookie()).transpose();
        cookie.map_err(|error| KernelError::of(&error))
    }

    fn set_hook(&mut self, change: &Change<Hook, HookMode>) -> Result<(), KernelError> {
        match change {
            Change::Put(hook, mode) => self.attach(hook, *mode),
            Change::Delete(hook) => self.detach(hook),
        }
    }

    fn attach(&mut self, hook: &Hook, mode: HookMode) -> Result<(), KernelError> {
        let program = rows::program_id(hook.program);
        let attached = match &hook.target {
            HookTarget::Interface(link) => {
                let index = links::existing(link)?;
                self.bpf()?.hooks.attach(program, index, mode)
            }
            HookTarget::CgroupRoot => {
                let root = self.options.cgroup2_root.clone().or_else(bpf::cgroup2_root);
                let root =
                    root.ok_or_else(|| KernelError("the cgroup v2 hierarchy is not mounted".to_owned()))?;
                self.bpf()?.hooks.attach_cgroup(program, &root)
            }
        };
        attached.map_err(|error| KernelError::of(&error))
    }

    fn detach(&mut self, hook: &Hook) -> Result<(), KernelError> {
        let ifindex = match &hook.target {
            HookTarget::Interface(link) => match links::index_of(link) {
                Some(index) => Some(index),
                // The hook went with its interface.
                None => return Ok(()),
            },
            HookTarget::CgroupRoot => None,
        };
        let hooks = &mut self.bpf()?.hooks;
        for mode in MODES.into_iter().filter(|mode| (*mode == HookMode::Cgroup) == ifindex.is_none()) {
            let pin = HookPin { program: rows::program_id(hook.program), ifindex, mode };
            hooks.detach(&pin).map_err(|error| KernelError::of(&error))?;
        }
        Ok(())
    }
}

/// Only packets of the routing mesh look into earlier rings: sockets keep the backend that they were translated to.
fn put_rings(tables: &mut Tables, rings: &[(ebpf_abi::RingKey, Vec<Ip4>)]) -> Result<(), KernelError> {
    let ingress_vni = tables.config.get().map_err(|error| KernelError::of(&error))?.ingress_vni;
    let replaced =
        |key: &ebpf_abi::RingKey| if key.vni == ingress_vni { Replaced::Stay } else { Replaced::Go };
    tables.rings.swap_all(rings, replaced).map_err(|error| KernelError::of(&error))
}

fn owner(owner: Owner) -> Ip {
    match owner {
        Owner::ThisNode => Ip::UNSPECIFIED,
        Owner::Node(vtep) => vtep.into(),
    }
}

fn endpoint(row: &Endpoint) -> Result<ebpf_abi::Endpoint, KernelError> {
    let mac = rows::mac(row.mac);
    let endpoint = match &row.place {
        Place::Local(link) => ebpf_abi::Endpoint::local(mac, existing(link)?),
        Place::Remote(vtep) => ebpf_abi::Endpoint::remote(mac, (*vtep).into()),
    };
    Ok(endpoint.serving(row.serves))
}

fn existing(link: &LinkName) -> Result<u32, KernelError> {
    links::existing(link)
}

fn places(ring: &Ring) -> Vec<Ip4> {
    ring.0.iter().map(|address| Ip4::from(*address)).collect()
}
