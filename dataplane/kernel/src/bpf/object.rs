//! The BPF object of this build, and its programs in the kernel.

use std::os::fd::{AsFd as _, BorrowedFd};

use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfError, EbpfLoader};
use ebpf_abi::ProgramId;
use ebpf_abi::names::map;

use super::pins::PinDir;

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
        for program in ProgramId::ALL {
            let name = program.label();
            let result = match programs.get(*program)? {
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
        let name = program.label();
        self.0.program_mut(name).ok_or(LoadError::Absent { name })
    }

    pub(super) fn fd(&self, program: ProgramId) -> Result<BorrowedFd<'_>, LoadError> {
        let name = program.label();
        let program = self.0.program(name).ok_or(LoadError::Absent { name })?;
        let fd = program.fd().map_err(|source| LoadError::Program { name, source: Box::new(source) })?;
        Ok(fd.as_fd())
    }
}
