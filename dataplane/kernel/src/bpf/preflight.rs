//! What the data plane needs of the machine, checked before anything is touched.

use std::path::PathBuf;

use caps::{CapSet, Capability};

/// The oldest kernel that is supported: Debian 12's.
const OLDEST_KERNEL: (u32, u32) = (6, 1);
/// Kernels from this one on have TCX links.
const TCX_KERNEL: (u32, u32) = (6, 6);

/// What is missing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    #[error("kernel {release} is too old: 6.1 or newer is needed")]
    Kernel { release: String },
    #[error(
        "the capability {capability} is missing: run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN"
    )]
    Capability { capability: &'static str },
    #[error("can't ask for this process's capabilities: {reason}")]
    Unknown { reason: String },
}

/// Checks kernel and capabilities.
pub fn check() -> Result<(), Missing> {
    let release = release();
    if kernel_version(&release) < OLDEST_KERNEL {
        return Err(Missing::Kernel { release });
    }
    let needed = [
        (Capability::CAP_BPF, "CAP_BPF"),
        (Capability::CAP_NET_ADMIN, "CAP_NET_ADMIN"),
        (Capability::CAP_SYS_ADMIN, "CAP_SYS_ADMIN"),
    ];
    for (capability, name) in needed {
        let has = caps::has_cap(None, CapSet::Effective, capability)
            .map_err(|error| Missing::Unknown { reason: error.to_string() })?;
        if !has {
            return Err(Missing::Capability { capability: name });
        }
    }
    Ok(())
}

/// The kernel has TCX links; below that, filters of the clsact qdisc stand in.
pub fn has_tcx() -> bool {
    kernel_version(&release()) >= TCX_KERNEL
}

/// Where the cgroup v2 hierarchy is mounted; `None` if it is not.
pub fn cgroup2_root() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    })
}

fn release() -> String {
    nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default()
}

/// Major and minor number; zeros where the text has none.
fn kernel_version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_releases() {
        assert_eq!(kernel_version("6.1.0-18-amd64"), (6, 1));
        assert_eq!(kernel_version("6.18.44-fc-v657"), (6, 18));
        assert_eq!(kernel_version(""), (0, 0));
        assert!(kernel_version("5.15.0") < OLDEST_KERNEL);
    }
}
