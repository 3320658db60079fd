//! What `meshctl` shows, read straight from the pins: the data plane tells about itself with or without its daemon.
//!
//! Reading needs `CAP_BPF` and the node's own network namespace (for the names of interfaces).

mod fdb;
mod flows;
mod rings;
mod top;
pub mod trace;
mod watch;

use std::path::Path;

use dataplane_model::inspect::{DropsReport, EndpointRow, HookRow};
use dataplane_model::kernel_state::HookMode;
use ebpf_abi::{DropReason, EndpointKey, ProgramId};

pub use fdb::fdb;
pub use flows::{FlowCounts, count_flows, flows};
pub use rings::{Entrance, count_rings, load_balancers, rings};
pub use top::TopReading;
pub use watch::{Watch, Which};

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

/// All endpoints that the node knows, in order.
pub fn endpoints(pin_dir: &Path) -> Result<Vec<EndpointRow>, InspectError> {
    let rows = open(pin_dir)?.endpoints.rows()?;
    let row = |(key, endpoint): (EndpointKey, ebpf_abi::Endpoint)| EndpointRow {
        vni: key.vni,
        address: key.address.into(),
        mac: endpoint.mac.to_string(),
        vtep: (!endpoint.is_local()).then(|| endpoint.vtep.into()),
        interface: endpoint.is_local().then(|| name_of(endpoint.ifindex)),
        weight: None,
    };
    Ok(rows.into_iter().map(row).collect())
}

/// What each program did with the packets that it saw.
pub fn drops(pin_dir: &Path) -> Result<DropsReport, InspectError> {
    Ok(read_drops(&open(pin_dir)?.counters)?)
}

/// The names of all reasons, as [`drops`] gives them.
pub fn drop_reasons() -> impl Iterator<Item = &'static str> {
    DropReason::ALL.iter().map(|reason| reason.label())
}

/// What a drop reason means, by the name that [`drops`] gives it.
pub fn drop_text(name: &str) -> Option<&'static str> {
    DropReason::ALL.iter().find(|reason| reason.label() == name).map(|reason| reason.text())
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
