//! Options of Docker's driver `local` (moby `volume/local/local_unix.go`): what is mounted, and how.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::path::Path;

use nix::mount::{MsFlags, mount};

use crate::unmount::unmount_all;

/// A volume's mounts stay on its node as they are.
const PROPAGATION: [&str; 8] =
    ["private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable"];

/// Why they say nothing that can be done. `Display` is Docker's sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    #[error("invalid option: {0:?}")]
    Unknown(String),
    #[error("missing required option: {0:?}")]
    Missing(&'static str),
    #[error("quota size requested but no quota support")]
    Quota,
}

/// What a volume is made of, if not of a directory of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    source: String,
    kind: String,
    flags: MsFlags,
    /// For the file system.
    data: String,
}

impl Device {
    /// `None` of a directory.
    pub fn of(options: &BTreeMap<String, String>) -> Result<Option<Self>, OptionError> {
        if let Some(key) = options.keys().find(|key| !["type", "o", "device", "size"].contains(&key.as_str()))
        {
            return Err(OptionError::Unknown(key.clone()));
        }
        if options.contains_key("size") {
            return Err(OptionError::Quota);
        }
        let given = |key: &'static str| options.get(key).filter(|value| !value.is_empty());
        let needed = |key: &'static str| given(key).cloned().ok_or(OptionError::Missing(key));
        if ["type", "o", "device"].into_iter().all(|key| given(key).is_none()) {
            return Ok(None);
        }
        let (source, kind) = (needed("device")?, needed("type")?);
        let (mut flags, mut data) = (MsFlags::empty(), Vec::new());
        for word in options.get("o").into_iter().flat_map(|words| words.split(',')) {
            match flag(word) {
                Some((is_set, one)) => flags.set(one, is_set),
                None if word.is_empty() => {}
                None if PROPAGATION.contains(&word) => return Err(OptionError::Unknown(word.to_owned())),
                None => data.push(word),
            }
        }
        Ok(Some(Self { source, kind, flags, data: data.join(",") }))
    }

    /// Blocks, for as long as a server takes.
    pub fn mount(&self, target: &Path) -> io::Result<()> {
        let data = if self.kind.starts_with("nfs") || self.kind == "cifs" {
            with_address(&self.data)?
        } else {
            self.data.clone()
        };
        let data = (!data.is_empty()).then_some(data.as_str());
        mount(Some(self.source.as_str()), target, Some(self.kind.as_str()), self.flags, data)?;
        // Of a bind mount the kernel takes no other flag at first (`fs/namespace.c`, `do_loopback`).
        let others = self.flags - MsFlags::MS_BIND - MsFlags::MS_REC;
        if self.flags.contains(MsFlags::MS_BIND) && !others.is_empty() {
            let flags = others | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
            let changed = mount(None::<&str>, target, None::<&str>, flags, None::<&str>);
            return changed.map_err(|errno| unmount_all(target).err().unwrap_or(errno.into()));
        }
        Ok(())
    }
}

/// The kernel knows no names: `addr=` of a server is its address (moby `local_unix.go`, `mount`).
fn with_address(data: &str) -> io::Result<String> {
    let word = |word: &str| match word.split_once('=') {
        Some(("addr", name)) if name.parse::<IpAddr>().is_err() => {
            let found = (name, 0).to_socket_addrs()?.next();
            let found = found.ok_or_else(|| {
                io::Error::other(format!("error resolving passed in network volume address: {name}"))
            })?;
            Ok(format!("addr={}", found.ip()))
        }
        _ => Ok(word.to_owned()),
    };
    let words: io::Result<Vec<String>> = data.split(',').map(word).collect();
    Ok(words?.join(","))
}

/// A word of `o` that is for every file system: whether it sets or clears.
fn flag(word: &str) -> Option<(bool, MsFlags)> {
    Some(match word {
        "ro" => (true, MsFlags::MS_RDONLY),
        "rw" => (false, MsFlags::MS_RDONLY),
        "nosuid" => (true, MsFlags::MS_NOSUID),
        "suid" => (false, MsFlags::MS_NOSUID),
        "nodev" => (true, MsFlags::MS_NODEV),
        "dev" => (false, MsFlags::MS_NODEV),
        "noexec" => (true, MsFlags::MS_NOEXEC),
        "exec" => (false, MsFlags::MS_NOEXEC),
        "sync" => (true, MsFlags::MS_SYNCHRONOUS),
        "async" => (false, MsFlags::MS_SYNCHRONOUS),
        "dirsync" => (true, MsFlags::MS_DIRSYNC),
        "noatime" => (true, MsFlags::MS_NOATIME),
        "atime" => (false, MsFlags::MS_NOATIME),
        "nodiratime" => (true, MsFlags::MS_NODIRATIME),
        "relatime" => (true, MsFlags::MS_RELATIME),
        "strictatime" => (true, MsFlags::MS_STRICTATIME),
        "diratime" => (false, MsFlags::MS_NODIRATIME),
        "norelatime" => (false, MsFlags::MS_RELATIME),
        "nostrictatime" => (false, MsFlags::MS_STRICTATIME),
        "bind" => (true, MsFlags::MS_BIND),
        "rbind" => (true, MsFlags::MS_BIND.union(MsFlags::MS_REC)),
        "defaults" => (false, MsFlags::empty()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(options: &[(&str, &str)]) -> Result<Option<Device>, OptionError> {
        Device::of(&options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn a_volume_is_a_directory_unless_its_options_say_more() {
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&[("foo", "x")]), Err(OptionError::Unknown("foo".into())));
        assert_eq!(of(&[("type", "nfs")]), Err(OptionError::Missing("device")));
        assert_eq!(of(&[("o", "ro"), ("device", "/dev/x")]), Err(OptionError::Missing("type")));
        assert_eq!(of(&[("size", "1g")]), Err(OptionError::Quota));
        let device =
            of(&[("type", "nfs"), ("device", ":/srv"), ("o", "addr=10.0.0.9,ro,nfsvers=4,noexec,exec")]);
        let device = device.expect("valid").expect("a device");
        assert_eq!((device.flags, device.data.as_str()), (MsFlags::MS_RDONLY, "addr=10.0.0.9,nfsvers=4"));
        assert_eq!(with_address("addr=::1,a").expect("an address"), "addr=::1,a");
        assert_eq!(with_address("addr=localhost").expect("known").split('=').count(), 2);
    }
}
