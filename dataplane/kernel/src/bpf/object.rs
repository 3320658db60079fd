//! The BPF object of this build, and its programs in the kernel.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use aya::programs::links::FdLink;
use aya::programs::{Program, ProgramError, XdpMode};
use aya::{Ebpf, EbpfError, EbpfLoader};
use dataplane_model::kernel_state::HookMode;
use ebpf_abi::ProgramId;
use ebpf_abi::counters::{GENERIC_XDP_PROGRAM, PASS_PROGRAM};
use ebpf_abi::names::map;

use super::pins::{HookPin, PinDir};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mesh.o"));

/// Why the programs can't be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("the BPF object can't be read, or its maps can't be made")]
    Object(#[source] Box<EbpfError>),
    #[error("the BPF object has no program {name}")]
    Absent { name: &'static str },
    #[error("the kernel refuses the program {name}")]
    Program { name: &'static str, source: Box<ProgramError> },
    #[error("the program {name} can't be pinned")]
    Pin { name: &'static str, source: aya::pin::PinError },
}

/// Makes the far end of a veth uplink able to take what native XDP sends into it: a program there that passes everything,
/// pinned at `pin`. For labs; a NIC needs nothing of the kind.
pub fn attach_pass(ifindex: u32, pin: &Path) -> Result<(), LoadError> {
    let mut object = EbpfLoader::new().load(OBJECT).map_err(|error| LoadError::Object(Box::new(error)))?;
    let refused = |source| LoadError::Program { name: PASS_PROGRAM, source: Box::new(source) };
    let Some(Program::Xdp(program)) = object.program_mut(PASS_PROGRAM) else {
        return Err(LoadError::Absent { name: PASS_PROGRAM });
    };
    program.load().map_err(refused)?;
    let attached = program.attach_to_if_index(ifindex, XdpMode::Driver).and_then(|id| program.take_link(id));
    let link: FdLink =
        attached.map_err(refused)?.try_into().map_err(|_| LoadError::Absent { name: PASS_PROGRAM })?;
    link.pin(pin).map(drop).map_err(|source| LoadError::Pin { name: PASS_PROGRAM, source })
}

/// The programs of this build, loaded.
pub struct Programs(Ebpf);

impl Programs {
    /// Loads all programs over the pinned maps; makes and pins maps that are absent.
    pub fn load(pins: &PinDir) -> Result<Self, LoadError> {
        let mut loader = EbpfLoader::new();
        for name in map::ALL {
            loader.map_pin_path(name, pins.map(name));
        }
        Self::load_with(&mut loader)
    }

    /// Loads all programs with maps of their own that nobody else sees.
    pub fn load_private() -> Result<Self, LoadError> {
        Self::load_with(&mut EbpfLoader::new())
    }

    fn load_with(loader: &mut EbpfLoader<'_>) -> Result<Self, LoadError> {
        let mut programs = Self(loader.load(OBJECT).map_err(|error| LoadError::Object(Box::new(error)))?);
        for name in ProgramId::ALL.iter().map(|program| program.label()).chain([GENERIC_XDP_PROGRAM]) {
            let result = match programs.named(name)? {
                Program::Xdp(program) => program.load(),
                Program::SchedClassifier(program) => program.load(),
                Program::CgroupSockAddr(program) => program.load(),
                _ => return Err(LoadError::Absent { name }),
            };
            result.map_err(|source| LoadError::Program { name, source: Box::new(source) })?;
        }
        Ok(programs)
    }

    pub fn get(&mut self, program: ProgramId) -> Result<&mut Program, LoadError> {
        self.named(program.label())
    }

    /// The program that hangs in such a hook.
    pub(super) fn of(&mut self, pin: &HookPin) -> Result<&mut Program, LoadError> {
        self.named(name_of(pin))
    }

    fn named(&mut self, name: &'static str) -> Result<&mut Program, LoadError> {
        self.0.program_mut(name).ok_or(LoadError::Absent { name })
    }

    /// Of the program that hangs in such a hook.
    pub(super) fn fd(&self, pin: &HookPin) -> Result<BorrowedFd<'_>, LoadError> {
        let name = name_of(pin);
        let program = self.0.program(name).ok_or(LoadError::Absent { name })?;
        let fd = program.fd().map_err(|source| LoadError::Program { name, source: Box::new(source) })?;
        Ok(fd.as_fd())
    }
}

fn name_of(pin: &HookPin) -> &'static str {
    if pin.mode == HookMode::XdpGeneric { GENERIC_XDP_PROGRAM } else { pin.program.label() }
}
