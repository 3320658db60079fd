//! Where maps and hooks are pinned: `<pin dir>/v<ABI>/maps/…`, `<pin dir>/v<ABI>/links/…`, and the maps of flows in
//! `<pin dir>/flows<layout>/…`.

use std::path::{Path, PathBuf};
use std::{fs, io};

use dataplane_model::kernel_state::HookMode;
use ebpf_abi::names::{FLOWS_DIR, LINKS_DIR, MAPS_DIR, map};
use ebpf_abi::{ABI_VERSION, FLOW_LAYOUT, ProgramId};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, statfs};

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
/// Where a BPF file system belongs.
const BPF_FS: &str = "/sys/fs/bpf";
const CGROUP: &str = "cgroup";

/// Why pins can't be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error("{path} is not in a BPF file system, which is mounted at /sys/fs/bpf", path = path.display())]
    NotBpfFs { path: PathBuf },
    #[error("can't mount the BPF file system at /sys/fs/bpf")]
    Mount(#[source] nix::Error),
    #[error("{path}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// The versioned directories of one node's pins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinDir {
    /// Above all versions.
    above: PathBuf,
    version: u32,
    versioned: PathBuf,
    flows: PathBuf,
}

/// A hook that is pinned, as its file's name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HookPin {
    pub program: ProgramId,
    /// `None` for the cgroup hooks.
    pub ifindex: Option<u32>,
    pub mode: HookMode,
}

impl PinDir {
    /// The pins under `pin_dir`, which need not exist.
    pub fn new(pin_dir: &Path) -> Self {
        Self {
            above: pin_dir.to_owned(),
            version: ABI_VERSION,
            versioned: pin_dir.join(format!("v{ABI_VERSION}")),
            flows: pin_dir.join(format!("{FLOWS_DIR}{FLOW_LAYOUT}")),
        }
    }

    /// Makes the directories, and mounts the BPF file system if `pin_dir` is meant to lie there and it is not.
    pub fn create(pin_dir: &Path) -> Result<Self, PinError> {
        if pin_dir.starts_with(BPF_FS) && !is_bpf_fs(Path::new(BPF_FS)) {
            create_dir(Path::new(BPF_FS))?;
            mount(Some("bpf"), BPF_FS, Some("bpf"), MsFlags::empty(), None::<&str>)
                .map_err(PinError::Mount)?;
        }
        let pins = Self::new(pin_dir);
        create_dir(&pins.maps())?;
        create_dir(&pins.links())?;
        create_dir(&pins.flows)?;
        if is_bpf_fs(&pins.maps()) { Ok(pins) } else { Err(PinError::NotBpfFs { path: pin_dir.to_owned() }) }
    }

    /// The pins of other ABI versions beside these.
    pub fn others(&self) -> Result<Vec<Self>, PinError> {
        let numbers = self.numbered("v")?.into_iter().map(|(number, _)| number);
        Ok(numbers.filter(|number| *number != self.version).map(|number| self.of_version(number)).collect())
    }

    /// Directories with flows of other layouts.
    pub fn other_flows(&self) -> Result<Vec<PathBuf>, PinError> {
        let paths = self.numbered(FLOWS_DIR)?.into_iter().map(|(_, path)| path);
        Ok(paths.filter(|path| *path != self.flows).collect())
    }

    /// Directories beside these whose name is `prefix` and a number.
    fn numbered(&self, prefix: &str) -> Result<Vec<(u32, PathBuf)>, PinError> {
        let entries = match fs::read_dir(&self.above) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(PinError::Io { path: self.above.clone(), source }),
        };
        let numbered = |path: PathBuf| {
            let digits = path.file_name()?.to_str()?.strip_prefix(prefix)?;
            // A sign or a leading zero is nothing that we write.
            let number = digits.parse().ok().filter(|number: &u32| number.to_string() == digits)?;
            Some((number, path))
        };
        Ok(entries.flatten().filter_map(|entry| numbered(entry.path())).collect())
    }

    /// Of the ABI version `version`.
    #[must_use]
    pub fn of_version(&self, version: u32) -> Self {
        Self { version, versioned: self.above.join(format!("v{version}")), ..self.clone() }
    }

    pub fn version(&self) -> u32 {
        self.version
    }

    /// Where all of the version's pins are but the flows.
    pub fn versioned(&self) -> &Path {
        &self.versioned
    }

    /// Somebody has pinned the maps.
    pub fn has_tables(&self) -> bool {
        map::ALL.iter().all(|name| self.map(name).exists())
    }

    pub fn maps(&self) -> PathBuf {
        self.versioned.join(MAPS_DIR)
    }

    pub fn links(&self) -> PathBuf {
        self.versioned.join(LINKS_DIR)
    }

    pub fn map(&self, name: &str) -> PathBuf {
        if map::OF_FLOWS.contains(&name) { self.flows.join(name) } else { self.maps().join(name) }
    }

    pub fn hook(&self, pin: &HookPin) -> PathBuf {
        self.links().join(pin.file_name())
    }

    /// All pinned hooks, by name. Files that are none are not ours to judge and left out.
    pub fn hooks(&self) -> Result<Vec<HookPin>, PinError> {
        let directory = self.links();
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(PinError::Io { path: directory, source }),
        };
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok().and_then(|entry| entry.file_name().into_string().ok()))
            .collect();
        names.sort();
        Ok(names.iter().filter_map(|name| HookPin::parse(name)).collect())
    }

    /// Removes the directories with all pins, and the one above if nothing else is in it. Links end with their pins; filters
    /// of clsact qdiscs don't.
    pub fn remove_all(&self) -> Result<(), PinError> {
        remove_dir(&self.versioned)?;
        remove_dir(&self.flows)?;
        // Not empty, or gone: both are as they should be.
        let _ = fs::remove_dir(&self.above);
        Ok(())
    }

    /// Removes what other versions have pinned, see [`super::hooks::remove_other_versions`].
    pub(super) fn remove_others(&self) -> Result<(), PinError> {
        for other in self.others()? {
            remove_dir(&other.versioned)?;
        }
        self.other_flows()?.iter().try_for_each(|flows| remove_dir(flows))
    }

    /// Removes a pin; one that is absent is success.
    pub fn remove(&self, pin: &HookPin) -> Result<(), PinError> {
        let path = self.hook(pin);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(PinError::Io { path, source: error })
            }
            _ => Ok(()),
        }
    }
}

impl HookPin {
    pub fn file_name(&self) -> String {
        let program = self.program.label();
        match (self.ifindex, self.mode) {
            (Some(ifindex), mode) => format!("{program}-{ifindex}-{}", mode_name(mode)),
            (None, _) => format!("{program}-{CGROUP}"),
        }
    }

    pub fn parse(file_name: &str) -> Option<Self> {
        let (program, rest) = file_name.split_once('-')?;
        let program = *ProgramId::ALL.iter().find(|known| known.label() == program)?;
        if rest == CGROUP {
            return Some(Self { program, ifindex: None, mode: HookMode::Cgroup });
        }
        let (ifindex, mode) = rest.split_once('-')?;
        let modes = [HookMode::Tcx, HookMode::Clsact, HookMode::XdpNative, HookMode::XdpGeneric];
        let mode = modes.into_iter().find(|known| mode_name(*known) == mode)?;
        Some(Self { program, ifindex: Some(ifindex.parse().ok()?), mode })
    }
}

const fn mode_name(mode: HookMode) -> &'static str {
    match mode {
        HookMode::Tcx => "tcx",
        HookMode::Clsact => "clsact",
        HookMode::XdpNative => "native",
        HookMode::XdpGeneric => "generic",
        HookMode::Cgroup => CGROUP,
    }
}

fn is_bpf_fs(path: &Path) -> bool {
    statfs(path).is_ok_and(|status| status.filesystem_type() == FsType(BPF_FS_MAGIC.cast_signed()))
}

fn remove_dir(path: &Path) -> Result<(), PinError> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(PinError::Io { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn create_dir(path: &Path) -> Result<(), PinError> {
    fs::create_dir_all(path).map_err(|source| PinError::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_all_of_a_hook() {
        let pins = [
            HookPin { program: ProgramId::MeshUplink, ifindex: Some(12), mode: HookMode::Tcx },
            HookPin { program: ProgramId::MeshTask, ifindex: Some(3), mode: HookMode::Clsact },
            HookPin { program: ProgramId::MeshXdp, ifindex: Some(12), mode: HookMode::XdpNative },
            HookPin { program: ProgramId::MeshConnect4, ifindex: None, mode: HookMode::Cgroup },
        ];
        for pin in pins {
            assert_eq!(HookPin::parse(&pin.file_name()), Some(pin));
        }
        assert_eq!(HookPin::parse("mesh_uplink-x-tcx"), None);
        assert_eq!(HookPin::parse("something"), None);
    }
}
