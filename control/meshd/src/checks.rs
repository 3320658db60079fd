//! What the daemon needs of the machine. Each thing that is missing is one sentence that says how to get it.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, FsType, statfs};

use crate::config::{Config, Runtime};

/// Oldest kernel with all that the data plane uses: Debian 12's.
const MIN_KERNEL: (u32, u32) = (6, 1);
/// What the daemon does with each, for the sentence.
const CAPABILITIES: [(Capability, &str, &str); 3] = [
    (Capability::CAP_NET_ADMIN, "CAP_NET_ADMIN", "make links, routes and network namespaces"),
    (Capability::CAP_BPF, "CAP_BPF", "load BPF programs and maps"),
    (Capability::CAP_SYS_ADMIN, "CAP_SYS_ADMIN", "mount file systems and enter namespaces"),
];
/// Where BPF file systems are mounted by convention.
const BPFFS: &str = "/sys/fs/bpf";
/// Where version 2 of the cgroup file system is, alone or beside version 1.
const CGROUP2: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// A program that the way out needs, with its Debian package and purpose.
const NFT: (&str, &str, &str) = ("nft", "nftables", "to masquerade what tasks send out of the cluster");
/// The same of containers that no Docker Engine runs.
const PROGRAMS: [(&str, &str, &str); 3] = [
    ("conmon", "conmon", "to watch containers"),
    ("skopeo", "skopeo", "to pull and load images"),
    ("umoci", "umoci", "to unpack images"),
];

/// Something that the machine lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    Capability { name: &'static str, purpose: &'static str },
    Kernel { found: String },
    Bpffs { dir: PathBuf, reason: String },
    Cgroup2,
    Program { name: &'static str, package: &'static str, purpose: &'static str },
    Runtime { wanted: Option<Runtime> },
    Engine { socket: PathBuf },
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capability { name, purpose } => {
                write!(f, "capability {name} is missing: meshd must {purpose}; run it as root")
            }
            Self::Kernel { found } => {
                let (major, minor) = MIN_KERNEL;
                write!(f, "kernel {found} is too old: meshd needs Linux {major}.{minor} or later")
            }
            Self::Bpffs { dir, reason } => write!(
                f,
                "{} is on no BPF file system ({reason}): run mount -t bpf bpf {BPFFS}, or give --bpffs-dir",
                dir.display()
            ),
            Self::Cgroup2 => write!(
                f,
                "no cgroup2 file system at {} or {}: boot with systemd.unified_cgroup_hierarchy=1",
                CGROUP2[0], CGROUP2[1]
            ),
            Self::Program { name, package, purpose } => {
                write!(f, "{name} is not in $PATH, needed {purpose}: run apt-get install {package}")
            }
            Self::Runtime { wanted: Some(runtime) } => write!(
                f,
                "the OCI runtime {0} is not in $PATH: run apt-get install {0}, or choose another by --runtime",
                runtime.name()
            ),
            Self::Engine { socket } => write!(
                f,
                "no Docker Engine at {}: start it, say where it is by --docker-host, or leave out --runtime docker",
                socket.display()
            ),
            Self::Runtime { wanted: None } => {
                write!(f, "no OCI runtime in $PATH: run apt-get install runc (or crun)")
            }
        }
    }
}

/// All that is missing. Mounts the BPF file system if it is not there.
pub fn check(config: &Config) -> Vec<Missing> {
    let mut missing = Vec::new();
    for (capability, name, purpose) in CAPABILITIES {
        if !caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false) {
            missing.push(Missing::Capability { name, purpose });
        }
    }
    missing.extend(check_kernel());
    missing.extend(ensure_bpffs(&config.bpffs_dir));
    if !CGROUP2.iter().any(|path| is_on(Path::new(path), CGROUP2_SUPER_MAGIC)) {
        missing.push(Missing::Cgroup2);
    }
    let is_hosted = config.runtime == Some(Runtime::Docker);
    let programs = PROGRAMS.iter().filter(|_| !is_hosted).chain([&NFT]);
    for &(name, package, purpose) in programs {
        if find_program(name).is_none() {
            missing.push(Missing::Program { name, package, purpose });
        }
    }
    if is_hosted && !config.docker_socket.exists() {
        missing.push(Missing::Engine { socket: config.docker_socket.clone() });
    }
    if !is_hosted && find_runtime(config.runtime).is_none() {
        missing.push(Missing::Runtime { wanted: config.runtime });
    }
    missing
}

/// Who is to run containers, and where it is: the one that was asked for, else what is there, runc first.
pub fn find_runtime(wanted: Option<Runtime>) -> Option<(Runtime, PathBuf)> {
    let choices = wanted.map_or(vec![Runtime::Runc, Runtime::Crun], |runtime| vec![runtime]);
    choices.into_iter().find_map(|runtime| Some((runtime, find_program(runtime.name())?)))
}

/// The executable file of this name in `$PATH`, or where Debian keeps system programs.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0))
}

fn check_kernel() -> Option<Missing> {
    let uname = nix::sys::utsname::uname().ok()?;
    let release = uname.release().to_string_lossy();
    (parse_kernel(&release)? < MIN_KERNEL).then(|| Missing::Kernel { found: release.into_owned() })
}

/// Major and minor number of a kernel release, `6.1.0-13-amd64`.
fn parse_kernel(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn ensure_bpffs(dir: &Path) -> Option<Missing> {
    let missing = |reason: String| Some(Missing::Bpffs { dir: dir.to_owned(), reason });
    if is_on(dir, BPF_FS_MAGIC) {
        return None;
    }
    if !dir.starts_with(BPFFS) {
        return missing("it is another file system".into());
    }
    match mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&OsStr>) {
        Ok(()) => None,
        Err(error) => missing(format!("mounting it failed: {}", error.desc())),
    }
}

/// Is `path`, or the nearest directory above it that exists, on a file system of this type?
fn is_on(path: &Path, magic: FsType) -> bool {
    let nearest = path.ancestors().find(|dir| dir.exists());
    nearest.and_then(|dir| statfs(dir).ok()).is_some_and(|fs| fs.filesystem_type() == magic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_compared_by_number() {
        for (release, new_enough) in
            [("6.1.0-13-amd64", true), ("6.18.44", true), ("5.10.0-8", false), ("6.0", false), ("10.0", true)]
        {
            assert_eq!(parse_kernel(release).map(|v| v >= MIN_KERNEL), Some(new_enough), "{release}");
        }
        assert_eq!(parse_kernel("linux"), None);
    }

    #[test]
    fn programs_are_found_by_name() {
        assert_eq!(find_program("sh").and_then(|p| Some(p.file_name()?.to_owned())), Some("sh".into()));
        assert_eq!(find_program("no-such-program-here"), None);
    }

    #[test]
    fn a_missing_thing_is_one_sentence_with_its_cure() {
        let missing = Missing::Runtime { wanted: Some(Runtime::Crun) }.to_string();
        assert!(missing.contains("apt-get install crun"), "{missing}");
        let dir = tempfile::tempdir().expect("a directory");
        let missing =
            ensure_bpffs(dir.path()).expect("a temporary directory is no BPF file system").to_string();
        assert!(missing.contains("mount -t bpf"), "{missing}");
    }
}
