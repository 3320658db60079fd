//! What `meshctl` shows, read straight from the pins: the data plane tells about itself with or without its daemon.
//!
//! Reading needs `CAP_BPF` and the node's own network namespace (for the names of interfaces).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;

use dataplane_model::inspect::{DropsReport, EndpointRow, HookRow, LoadBalancerBackend, LoadBalancerRow};
use dataplane_model::kernel_state::{HookMode, protocol_name};
use ebpf_abi::{EndpointKey, Ip4, ProgramId, RingKey};

use crate::bpf::{HookPin, PinDir, PinError, TableError, Tables, interface_name, is_alive, read_drops};

/// Why the pins can't be read.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    #[error("no data plane is pinned at {path}")]
    Absent { path: String },
    #[error("the pinned maps")]
    Table(#[from] TableError),
    #[error("the pinned hooks")]
    Pins(#[from] PinError),
}

/// Frontends and virtual addresses with their rings, in order.
pub fn load_balancers(pin_dir: &Path) -> Result<Vec<LoadBalancerRow>, InspectError> {
    let tables = open(pin_dir)?;
    let mut rings =
        RingReader { tables: &tables, own_vtep: tables.config.get()?.vtep, read: BTreeMap::new() };
    let mut rows = Vec::new();
    for (key, frontend) in tables.frontends.rows()? {
        let name = format!("{}:{}/{}", key.address, key.port, protocol_name(key.protocol));
        rows.push(rings.row(name, "ingress", frontend.ring)?);
    }
    for (key, ring) in tables.vips.rows()? {
        rows.push(rings.row(key.address.to_string(), "vip", ring)?);
    }
    Ok(rows)
}

/// All endpoints that the node knows, in order.
pub fn endpoints(pin_dir: &Path) -> Result<Vec<EndpointRow>, InspectError> {
    let rows = open(pin_dir)?.endpoints.rows()?;
    let row = |(key, endpoint): (EndpointKey, ebpf_abi::Endpoint)| EndpointRow {
        vni: key.vni,
        address: key.address.into(),
        mac: endpoint.mac.to_string(),
        vtep: (!endpoint.is_local()).then(|| endpoint.vtep.into()),
        interface: endpoint.is_local().then(|| name_of(endpoint.ifindex)),
    };
    Ok(rows.into_iter().map(row).collect())
}

/// What each program did with the packets that it saw.
pub fn drops(pin_dir: &Path) -> Result<DropsReport, InspectError> {
    Ok(read_drops(&open(pin_dir)?.counters)?)
}

/// Which program hangs where. The reasons are those that the pins can tell: the daemon knows more.
pub fn hooks(pin_dir: &Path) -> Result<Vec<HookRow>, InspectError> {
    let pins = PinDir::new(pin_dir);
    Ok(pins.hooks()?.iter().filter(|pin| is_alive(&pins, pin)).map(hook_row).collect())
}

fn hook_row(pin: &HookPin) -> HookRow {
    HookRow {
        interface: pin.ifindex.map_or_else(|| "cgroup root".to_owned(), name_of),
        hook: hook_name(pin.program.label(), pin.mode),
        program: pin.program.label().to_owned(),
        reason: reason(pin.mode).to_owned(),
    }
}

fn open(pin_dir: &Path) -> Result<Tables, InspectError> {
    let pins = PinDir::new(pin_dir);
    if !pins.maps().exists() {
        return Err(InspectError::Absent { path: pin_dir.display().to_string() });
    }
    Ok(Tables::open(&pins)?)
}

/// Reads every ring once: one service may have many frontends.
struct RingReader<'a> {
    tables: &'a Tables,
    own_vtep: Ip4,
    read: BTreeMap<RingKey, (u32, Vec<LoadBalancerBackend>)>,
}

impl RingReader<'_> {
    fn row(&mut self, frontend: String, kind: &str, ring: RingKey) -> Result<LoadBalancerRow, InspectError> {
        let (ring_size, backends) = self.backends(ring)?;
        let kind = kind.to_owned();
        Ok(LoadBalancerRow { frontend, kind, vni: ring.vni, service: String::new(), ring_size, backends })
    }

    /// The ring's size, and who has how many of its places.
    fn backends(&mut self, ring: RingKey) -> Result<(u32, Vec<LoadBalancerBackend>), InspectError> {
        if let Some(known) = self.read.get(&ring) {
            return Ok(known.clone());
        }
        let places = self.tables.rings.places(&ring)?.unwrap_or_default();
        let mut counts: BTreeMap<Ip4, u32> = BTreeMap::new();
        for place in &places {
            *counts.entry(*place).or_default() += 1;
        }
        let mut backends = Vec::new();
        for (address, places) in counts {
            let vtep = self.vtep(EndpointKey { vni: ring.vni, address })?;
            backends.push(LoadBalancerBackend { address: address.into(), vtep, places });
        }
        let known = (u32::try_from(places.len()).unwrap_or(u32::MAX), backends);
        self.read.insert(ring, known.clone());
        Ok(known)
    }

    /// Tunnel end of an endpoint's node; 0.0.0.0 if the endpoint is gone.
    fn vtep(&self, key: EndpointKey) -> Result<Ipv4Addr, InspectError> {
        let vtep = self.tables.endpoints.get(&key)?.map_or(Ip4::UNSPECIFIED, |endpoint| {
            if endpoint.is_local() { self.own_vtep } else { endpoint.vtep }
        });
        Ok(vtep.into())
    }
}

fn name_of(ifindex: u32) -> String {
    interface_name(ifindex).unwrap_or_else(|_| format!("#{ifindex}"))
}

/// A hook's name as `meshctl` shows it.
pub fn hook_name(program: &str, mode: HookMode) -> String {
    let direction = if program == ProgramId::MeshVxlanOut.label() { "egress" } else { "ingress" };
    match mode {
        HookMode::Tcx | HookMode::Clsact => format!("{mode} {direction}"),
        HookMode::XdpNative | HookMode::XdpGeneric => mode.to_string(),
        HookMode::Cgroup => format!("{mode} {}", program.trim_start_matches("mesh_")),
    }
}

const fn reason(mode: HookMode) -> &'static str {
    match mode {
        HookMode::Tcx => "a pinned link: the kernel has TCX",
        HookMode::Clsact => "a filter: the kernel has no TCX, or clsact was asked for",
        HookMode::XdpNative => "the driver runs XDP",
        HookMode::XdpGeneric => "XDP was asked for, and the driver has none",
        HookMode::Cgroup => "translates at the socket",
    }
}
