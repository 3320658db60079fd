//! Programs in their hooks.
//!
//! TCX, XDP and cgroup hooks are links, pinned: they outlive this process, end with their pin, and get another program
//! without a gap. Where TCX is missing or not wanted, filters of the clsact qdisc with our own priority, and the ABI version as
//! handle, stand in; there the program is pinned as the mark that the filter is ours.
//!
//! What an older version has hung hangs before ours, in TCX and clsact alike: until it is taken off it carries the traffic,
//! and ours what it passes on. An interface's one XDP link is taken over instead.

use std::fs::{self, File};
use std::io;
use std::mem;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::programs::links::{FdLink, Link as _};
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{
    CgroupAttachMode, LinkOrder, Program, ProgramError, SchedClassifier, TcAttachType, XdpMode,
};
use dataplane_model::kernel_state::HookMode;
use ebpf_abi::ProgramId;

use super::filter::{self, FilterPlace};
use super::object::{LoadError, Programs};
use super::pins::{HookPin, PinDir, PinError};
use super::sys;

/// Our place among the filters of a clsact qdisc. Of one priority those that were made first come first.
const FILTER_PRIORITY: u16 = 0x4d45;

/// Why a hook can't be changed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    #[error("{program} can't hang in a hook of the kind {mode:?}")]
    Kind { program: &'static str, mode: HookMode },
    #[error("no interface has the index {ifindex}")]
    Interface { ifindex: u32, source: nix::Error },
    #[error("{program} can't be attached by {mode:?}{hint}", hint = hint(*.mode))]
    Attach { program: &'static str, mode: HookMode, source: Box<ProgramError> },
    #[error("{program} can't be attached to the cgroup {path}")]
    Cgroup { program: &'static str, path: String, source: io::Error },
    #[error("the hook of {program} can't be pinned")]
    Pin { program: &'static str, source: aya::pin::PinError },
    #[error("the hook's pin")]
    Pins(#[from] PinError),
    #[error("the program")]
    Load(#[from] LoadError),
}

const fn hint(mode: HookMode) -> &'static str {
    match mode {
        HookMode::Tcx => " (kernel 6.6 and newer; use clsact)",
        HookMode::XdpNative => " (does the driver have XDP, and is no other XDP program attached?)",
        _ => "",
    }
}

/// Hooks of one node.
pub struct Hooks {
    pins: PinDir,
    programs: Programs,
}

impl Hooks {
    pub(super) fn new(pins: PinDir, programs: Programs) -> Self {
        Self { pins, programs }
    }

    /// The programs, for [`Programs::test_run`].
    pub fn programs(&mut self) -> &mut Programs {
        &mut self.programs
    }

    /// The hooks that hang now. Pins whose interface is gone are left out.
    pub fn attached(&self) -> Result<Vec<HookPin>, HookError> {
        let pins = self.pins.hooks()?;
        Ok(pins.into_iter().filter(|pin| is_alive(&self.pins, pin)).collect())
    }

    /// Hangs a program on an interface, by the mode given and no other. What hangs there already gets this build's
    /// program.
    pub fn attach(&mut self, program: ProgramId, ifindex: u32, mode: HookMode) -> Result<(), HookError> {
        let pin = HookPin { program, ifindex: Some(ifindex), mode };
        if matches!(mode, HookMode::XdpNative | HookMode::XdpGeneric) {
            // An interface has one XDP program; what it would take meanwhile goes to the tc program beneath.
            self.detach_other_modes(&pin)?;
            self.take_over_xdp(&pin, ifindex)?;
        }
        match mode {
            HookMode::Tcx => self.attach_link(&pin, |programs| attach_tcx(programs, &pin, ifindex))?,
            HookMode::XdpNative => self.attach_link(&pin, |programs| attach_xdp(programs, &pin, ifindex))?,
            HookMode::XdpGeneric => self.attach_link(&pin, |programs| attach_xdp(programs, &pin, ifindex))?,
            HookMode::Clsact => self.attach_filter(&pin, ifindex)?,
            HookMode::Cgroup => return Err(kind_error(&pin)),
        }
        self.detach_other_modes(&pin)
    }

    /// Hangs a socket program on a cgroup of the v2 hierarchy.
    pub fn attach_cgroup(&mut self, program: ProgramId, cgroup: &Path) -> Result<(), HookError> {
        let pin = HookPin { program, ifindex: None, mode: HookMode::Cgroup };
        self.attach_link(&pin, |programs| attach_to_cgroup(programs, &pin, cgroup))
    }

    /// Takes a program off, before this returns; one that does not hang there is success.
    pub fn detach(&mut self, pin: &HookPin) -> Result<(), HookError> {
        detach(&self.pins, pin)
    }

    /// Takes all programs off.
    pub(super) fn detach_all(&mut self) -> Result<(), HookError> {
        for pin in self.pins.hooks()? {
            self.detach(&pin)?;
        }
        Ok(())
    }

    pub(super) fn into_pins(self) -> PinDir {
        self.pins
    }

    /// Gives all hooks that are pinned this build's programs, and removes the pins of those that are gone.
    pub(super) fn renew(&mut self) -> Result<(), HookError> {
        for pin in self.pins.hooks()? {
            let renewed = match (pin.mode, pin.ifindex) {
                (HookMode::Clsact, Some(ifindex)) => self.replace_filter(&pin, ifindex)?,
                _ => self.update_link(&pin)?,
            };
            if !renewed {
                self.pins.remove(&pin)?;
            }
        }
        Ok(())
    }

    fn detach_other_modes(&mut self, kept: &HookPin) -> Result<(), HookError> {
        for mode in [HookMode::Tcx, HookMode::Clsact, HookMode::XdpNative, HookMode::XdpGeneric] {
            let other = HookPin { mode, ..*kept };
            if mode != kept.mode && self.pins.hook(&other).exists() {
                self.detach(&other)?;
            }
        }
        Ok(())
    }

    /// An upgrade must not wait for a place that only its own completion would free, and drivers that take XDP off and on
    /// again lose what is in their rings: the link of another version becomes ours, with our program. One of the other mode, or
    /// that can't be updated, is taken off.
    fn take_over_xdp(&self, pin: &HookPin, ifindex: u32) -> Result<(), HookError> {
        for other in self.pins.others()? {
            if !self.pins.hook(pin).exists() && self.update_link_of(&other, pin)? {
                let (from, to) = (other.hook(pin), self.pins.hook(pin));
                fs::rename(&from, to).map_err(|source| PinError::Io { path: from, source })?;
            }
            for mode in [HookMode::XdpNative, HookMode::XdpGeneric] {
                detach(&other, &HookPin { program: ProgramId::MeshXdp, ifindex: Some(ifindex), mode })?;
            }
        }
        Ok(())
    }

    /// Updates the pinned link, or makes one with `make` and pins it.
    fn attach_link(
        &mut self,
        pin: &HookPin,
        make: impl FnOnce(&mut Programs) -> Result<FdLink, HookError>,
    ) -> Result<(), HookError> {
        if self.update_link(pin)? {
            return Ok(());
        }
        self.pins.remove(pin)?;
        let link = make(&mut self.programs)?;
        link.pin(self.pins.hook(pin))
            .map(drop)
            .map_err(|source| HookError::Pin { program: pin.program.label(), source })
    }

    /// False if no link is pinned, or what it hung on is gone.
    fn update_link(&self, pin: &HookPin) -> Result<bool, HookError> {
        self.update_link_of(&self.pins, pin)
    }

    fn update_link_of(&self, pins: &PinDir, pin: &HookPin) -> Result<bool, HookError> {
        let Ok(link) = sys::open_pin(&pins.hook(pin)) else { return Ok(false) };
        Ok(sys::update_link(link.as_fd(), self.programs.fd(pin)?).is_ok())
    }

    fn attach_filter(&mut self, pin: &HookPin, ifindex: u32) -> Result<(), HookError> {
        if self.replace_filter(pin, ifindex)? {
            return Ok(());
        }
        let name = interface_name(ifindex)?;
        // Fails if the qdisc is there already; if it fails otherwise, so does what follows.
        let _ = tc::qdisc_add_clsact(&name);
        let options = NlOptions {
            priority: FILTER_PRIORITY,
            handle: handle(self.pins.version()).into(),
            classid: None,
        };
        let program = classifier(&mut self.programs, pin)?;
        let attached = program
            .attach_with_options(&name, direction(pin.program), TcAttachOptions::Netlink(options))
            .and_then(|id| program.take_link(id));
        // A filter's link detaches it when dropped; this one is to stay.
        mem::forget(attached.map_err(|source| attach_error(pin, source))?);
        self.pin_filter(pin)
    }

    /// False if our filter is not there.
    fn replace_filter(&mut self, pin: &HookPin, ifindex: u32) -> Result<bool, HookError> {
        let Ok(name) = interface_name(ifindex) else { return Ok(false) };
        let Ok(filter) = filter_of(&self.pins, &name, pin.program) else { return Ok(false) };
        let program = classifier(&mut self.programs, pin)?;
        let Ok(id) = program.attach_to_link(filter) else { return Ok(false) };
        mem::forget(program.take_link(id).map_err(|source| attach_error(pin, source))?);
        self.pin_filter(pin)?;
        Ok(true)
    }

    /// Marks a filter as ours by pinning its program.
    fn pin_filter(&mut self, pin: &HookPin) -> Result<(), HookError> {
        self.pins.remove(pin)?;
        let path = self.pins.hook(pin);
        let pinned = self.programs.get(pin.program)?.pin(path);
        pinned.map_err(|source| HookError::Pin { program: pin.program.label(), source })
    }
}

/// Takes off what other versions have hung, and removes their pins and the flows that this one can't read. Programs that
/// answers come to go last: what began before is answered as it began.
pub fn remove_other_versions(pins: &PinDir) -> Result<(), HookError> {
    for other in pins.others()? {
        let (answers, questions): (Vec<HookPin>, Vec<HookPin>) =
            other.hooks()?.into_iter().partition(|pin| takes_answers(pin.program));
        questions.iter().chain(&answers).try_for_each(|pin| detach(&other, pin))?;
    }
    Ok(pins.remove_others()?)
}

const fn takes_answers(program: ProgramId) -> bool {
    use ProgramId::{MeshGetpeername4, MeshGetpeername6, MeshRecvmsg4, MeshRecvmsg6, MeshTask};
    matches!(program, MeshTask | MeshRecvmsg4 | MeshRecvmsg6 | MeshGetpeername4 | MeshGetpeername6)
}

fn detach(pins: &PinDir, pin: &HookPin) -> Result<(), HookError> {
    match (pin.mode, pin.ifindex) {
        (HookMode::Clsact, Some(ifindex)) => detach_filter(pins, pin, ifindex),
        _ => {
            if let Ok(link) = sys::open_pin(&pins.hook(pin)) {
                // Fails if what it hung on is gone, and with it the program.
                let _ = sys::detach_link(link.as_fd());
            }
        }
    }
    Ok(pins.remove(pin)?)
}

/// The pinned hook still hangs: its link holds on to its interface or cgroup, its filter runs the program that marks it
/// as ours. A link may have been detached and a filter removed or replaced by others.
pub(crate) fn is_alive(pins: &PinDir, pin: &HookPin) -> bool {
    let Ok(pinned) = sys::open_pin(&pins.hook(pin)) else { return false };
    match (pin.mode, pin.ifindex) {
        (HookMode::Clsact, Some(ifindex)) => {
            let place = FilterPlace {
                ifindex,
                is_egress: pin.program == ProgramId::MeshVxlanOut,
                priority: FILTER_PRIORITY,
                handle: handle(pins.version()),
            };
            let runs = filter::program_id(&place).ok().flatten();
            runs.is_some() && runs == sys::program_id(pinned.as_fd()).ok()
        }
        (_, Some(ifindex)) => sys::link_info(pinned.as_fd()).is_ok_and(|info| info.ifindex() == ifindex),
        (_, None) => sys::link_info(pinned.as_fd()).is_ok_and(|info| info.cgroup_id() != 0),
    }
}

pub(crate) fn interface_name(ifindex: u32) -> Result<String, HookError> {
    let name =
        nix::net::if_::if_indextoname(ifindex).map_err(|source| HookError::Interface { ifindex, source })?;
    Ok(name.to_string_lossy().into_owned())
}

fn direction(program: ProgramId) -> TcAttachType {
    if program == ProgramId::MeshVxlanOut { TcAttachType::Egress } else { TcAttachType::Ingress }
}

/// The versions' filters hang beside each other: each has its number, but for the early ones, which have all had the first.
const fn handle(version: u32) -> u32 {
    const LAST_OF_THE_FIRST: u32 = 9;
    if version <= LAST_OF_THE_FIRST { 1 } else { version }
}

fn filter_of(pins: &PinDir, interface: &str, program: ProgramId) -> Result<SchedClassifierLink, tc::TcError> {
    let handle: TcHandle = handle(pins.version()).into();
    SchedClassifierLink::attached(interface, direction(program), FILTER_PRIORITY, handle, None)
        .map_err(tc::TcError::IoError)
}

/// Absent is success, as is an interface that is gone or goes meanwhile; another failure shows when the interface is used
/// next.
fn detach_filter(pins: &PinDir, pin: &HookPin, ifindex: u32) {
    if let Ok(name) = interface_name(ifindex)
        && let Ok(filter) = filter_of(pins, &name, pin.program)
    {
        let _ = filter.detach();
    }
}

fn classifier<'a>(programs: &'a mut Programs, pin: &HookPin) -> Result<&'a mut SchedClassifier, HookError> {
    match programs.get(pin.program)? {
        Program::SchedClassifier(program) => Ok(program),
        _ => Err(kind_error(pin)),
    }
}

fn attach_tcx(programs: &mut Programs, pin: &HookPin, ifindex: u32) -> Result<FdLink, HookError> {
    let name = interface_name(ifindex)?;
    let program = classifier(programs, pin)?;
    let link = program
        .attach_with_options(&name, direction(pin.program), TcAttachOptions::TcxOrder(LinkOrder::default()))
        .and_then(|id| program.take_link(id))
        .map_err(|source| attach_error(pin, source))?;
    link.try_into().map_err(|_| kind_error(pin))
}

fn attach_xdp(programs: &mut Programs, pin: &HookPin, ifindex: u32) -> Result<FdLink, HookError> {
    let mode = if pin.mode == HookMode::XdpNative { XdpMode::Driver } else { XdpMode::Skb };
    let Program::Xdp(program) = programs.of(pin)? else { return Err(kind_error(pin)) };
    let link = program
        .attach_to_if_index(ifindex, mode)
        .and_then(|id| program.take_link(id))
        .map_err(|source| attach_error(pin, source))?;
    link.try_into().map_err(|_| kind_error(pin))
}

fn attach_to_cgroup(programs: &mut Programs, pin: &HookPin, cgroup: &Path) -> Result<FdLink, HookError> {
    let name = pin.program.label();
    let file = File::open(cgroup).map_err(|source| HookError::Cgroup {
        program: name,
        path: cgroup.display().to_string(),
        source,
    })?;
    let Program::CgroupSockAddr(program) = programs.get(pin.program)? else { return Err(kind_error(pin)) };
    // Links share a cgroup without asking for it.
    let link = program
        .attach(file, CgroupAttachMode::Single)
        .and_then(|id| program.take_link(id))
        .map_err(|source| attach_error(pin, source))?;
    link.try_into().map_err(|_| kind_error(pin))
}

fn attach_error(pin: &HookPin, source: ProgramError) -> HookError {
    HookError::Attach { program: pin.program.label(), mode: pin.mode, source: Box::new(source) }
}

fn kind_error(pin: &HookPin) -> HookError {
    HookError::Kind { program: pin.program.label(), mode: pin.mode }
}
