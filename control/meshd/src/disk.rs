//! What a node of a swarm keeps on disk, under `<state-dir>/swarm`: who it is, and how to find the others.
//!
//! `node.json` is written last when a swarm is entered, removed first when it is left, and is what makes a node part of
//! one. Without it the rest is of no use: a crash left it, and it is removed before a swarm is entered.

use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use control_model::{ClusterId, NodeId};
use control_rpc::IdentityPem;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Readable by root alone.
const SECRET_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;

/// `node.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFile {
    pub node: NodeId,
    pub cluster: ClusterId,
    /// Where this node listens while it is a manager.
    pub listen: SocketAddr,
    pub advertise: SocketAddr,
    /// The advertised address was this machine's own when it was chosen: when it is gone, the node has moved.
    #[serde(default)]
    pub advertise_is_own: bool,
    /// Tunnel end.
    pub data_path: IpAddr,
    /// UDP port of the cluster's tunnels.
    pub data_path_port: u16,
    /// Raft id of this node while it is a manager: chosen anew each time it becomes one.
    pub raft_id: Option<u64>,
    /// Managers as last heard, to go on with after a restart.
    pub managers: Vec<KnownManager>,
}

/// `node.json` with the digest of what it says: a flipped bit in a name or an address is readable, and wrong.
#[derive(Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    node: NodeFile,
    /// Hex. Files of earlier versions have none.
    #[serde(default)]
    digest: Option<String>,
}

fn digest_of(node: &NodeFile) -> String {
    let text = serde_json::to_vec(node).expect("plain values serialize");
    Sha256::digest(text).iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

/// A manager of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownManager {
    pub node: NodeId,
    pub addr: SocketAddr,
}

/// What is on the disk can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("can't read or write {0}")]
    Io(PathBuf, #[source] io::Error),
    #[error("{0} is damaged")]
    Damaged(PathBuf, #[source] serde_json::Error),
    #[error(
        "{0} is damaged: its digest is not that of its content. Leave the swarm and join it again (docker swarm leave --force), \
         or put a copy of the file back"
    )]
    Changed(PathBuf),
}

/// The directory of a node's swarm.
#[derive(Debug, Clone)]
pub struct SwarmDir(PathBuf);

impl SwarmDir {
    pub fn new(dir: PathBuf) -> Self {
        Self(dir)
    }

    /// Where consensus keeps log and snapshots.
    pub fn raft(&self) -> PathBuf {
        self.0.join("raft")
    }

    /// Key that encrypts the Raft data's own key.
    pub fn raft_key(&self) -> PathBuf {
        self.0.join("raft.key")
    }

    /// This node's part in a swarm; `None` if it is in none.
    pub fn load(&self) -> Result<Option<NodeFile>, DiskError> {
        let path = self.0.join("node.json");
        match fs::read(&path) {
            Ok(bytes) => {
                let kept: Kept = serde_json::from_slice(&bytes)
                    .map_err(|error| DiskError::Damaged(path.clone(), error))?;
                if kept.digest.as_ref().is_some_and(|digest| *digest != digest_of(&kept.node)) {
                    return Err(DiskError::Changed(path));
                }
                Ok(Some(kept.node))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(DiskError::Io(path, error)),
        }
    }

    /// Writes `node.json`.
    pub fn store(&self, node: &NodeFile) -> Result<(), DiskError> {
        let kept = Kept { digest: Some(digest_of(node)), node: node.clone() };
        let text = serde_json::to_vec_pretty(&kept).expect("plain values serialize");
        self.write("node.json", &text)
    }

    /// The highest fencing epoch that this node has seen; 0 if none was ever raised.
    pub fn load_epoch(&self) -> Result<u64, DiskError> {
        let path = self.0.join("epoch");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| DiskError::Damaged(path, error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(DiskError::Io(path, error)),
        }
    }

    /// Keeps it.
    pub fn store_epoch(&self, epoch: u64) -> Result<(), DiskError> {
        self.write("epoch", epoch.to_string().as_bytes())
    }

    /// The node's certificate, key and roots. The key may be a sealed one: see [`sealed_of`].
    pub fn load_identity(&self) -> Result<IdentityPem, DiskError> {
        let read = |name: &str| {
            let path = self.0.join(name);
            fs::read_to_string(&path).map_err(|error| DiskError::Io(path, error))
        };
        let pair = read("node.pem")?;
        // One file, so that certificate and key are replaced as one.
        let split = pair.find(CERTIFICATE_BEGIN).unwrap_or(0);
        let (key, certificate) = pair.split_at(split);
        Ok(IdentityPem { certificate: certificate.to_owned(), key: key.to_owned(), roots: read("root.pem")? })
    }

    /// Writes certificate, key and roots. In place of the key `sealed`, if it is given, goes to the disk.
    pub fn store_identity(&self, identity: &IdentityPem, sealed: Option<&[u8]>) -> Result<(), DiskError> {
        self.write("root.pem", identity.roots.as_bytes())?;
        let key = sealed.map_or_else(|| identity.key.trim_end().to_owned(), sealed_text);
        let pair = format!("{key}\n{}", identity.certificate);
        self.write("node.pem", pair.as_bytes())
    }

    /// The key at [`SwarmDir::raft_key`].
    pub fn load_raft_key(&self) -> Result<[u8; 32], DiskError> {
        let path = self.raft_key();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) => return Err(DiskError::Io(path, error)),
        };
        bytes.try_into().map_err(|_| DiskError::Io(path, io::Error::other("not 32 bytes")))
    }

    /// Writes the key at [`SwarmDir::raft_key`].
    pub fn store_raft_key(&self, bits: &[u8; 32]) -> Result<(), DiskError> {
        self.write("raft.key", bits)
    }

    /// The Raft data's key is not on this disk any more.
    pub fn remove_raft_key(&self) -> Result<(), DiskError> {
        remove(&self.raft_key())
    }

    /// Removes the Raft data: a node that is no manager any more holds none.
    pub fn remove_raft(&self) -> Result<(), DiskError> {
        remove(&self.raft())?;
        remove(&self.raft_key())
    }

    /// Removes everything; `node.json` first, so that half of a removal is no membership. What a crash leaves of the rest
    /// is for the next call to remove, before anything new is written.
    pub fn remove_all(&self) -> Result<(), DiskError> {
        remove(&self.0.join("node.json"))?;
        remove(&self.0)
    }

    /// Replaces a file whole, readable by root alone.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), DiskError> {
        let path = self.0.join(name);
        write_synced(&self.0, &path, bytes).map_err(|error| DiskError::Io(path, error))
    }
}

const CERTIFICATE_BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const SEALED_BEGIN: &str = "-----BEGIN SEALED KEY-----";
const SEALED_END: &str = "-----END SEALED KEY-----";

/// What is inside of a key that was stored sealed; `None` of a plain one.
pub fn sealed_of(key: &str) -> Option<Vec<u8>> {
    let digits = key.trim().strip_prefix(SEALED_BEGIN)?.strip_suffix(SEALED_END)?.trim();
    let pairs = digits.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    // What is no number opens nothing.
    Some(pairs.map(byte).collect::<Option<_>>().unwrap_or_default())
}

fn sealed_text(sealed: &[u8]) -> String {
    let digits = sealed.iter().fold(String::new(), |mut digits, byte| {
        write!(digits, "{byte:02x}").expect("a string takes everything");
        digits
    });
    format!("{SEALED_BEGIN}\n{digits}\n{SEALED_END}")
}

fn write_synced(dir: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    fs::set_permissions(dir, Permissions::from_mode(DIR_MODE))?;
    let new = path.with_extension("new");
    let _ = fs::remove_file(&new);
    let mut file = File::options().write(true).create_new(true).mode(SECRET_MODE).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(dir)?.sync_all()
}

/// Removing what is absent is success.
fn remove(path: &Path) -> Result<(), DiskError> {
    let result = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(DiskError::Io(path.to_owned(), error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeFile {
        let addr = "198.18.0.11:2377".parse().expect("an address");
        NodeFile {
            node: NodeId::from_bits(1),
            cluster: ClusterId::from_bits(2),
            listen: addr,
            advertise: addr,
            advertise_is_own: true,
            data_path: IpAddr::from([198, 18, 0, 11]),
            data_path_port: 4789,
            raft_id: Some(3),
            managers: vec![KnownManager { node: NodeId::from_bits(1), addr }],
        }
    }

    #[test]
    fn a_flipped_bit_is_found_and_a_file_of_before_is_read() {
        let tmp = tempfile::tempdir().expect("a directory");
        let dir = SwarmDir::new(tmp.path().join("swarm"));
        dir.store(&node()).expect("written");
        let path = tmp.path().join("swarm/node.json");
        let good = fs::read(&path).expect("there");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).expect("written");
            match dir.load() {
                // White space, or the digest's own name: what the file says is as it was.
                Ok(loaded) => assert_eq!(loaded, Some(node()), "byte {at}"),
                Err(error) => assert!(error.to_string().contains("is damaged"), "byte {at}: {error}"),
            }
            fs::write(&path, &good[..at]).expect("written");
            dir.load().expect_err("a cut file");
        }
        let plain = serde_json::to_vec(&node()).expect("plain values serialize");
        fs::write(&path, plain).expect("written");
        assert_eq!(dir.load().expect("of an earlier version"), Some(node()));
    }

    #[test]
    fn what_was_stored_is_loaded_and_secret() {
        let tmp = tempfile::tempdir().expect("a directory");
        let dir = SwarmDir::new(tmp.path().join("swarm"));
        assert_eq!(dir.load().expect("readable"), None);
        dir.store(&node()).expect("written");
        assert_eq!(dir.load().expect("readable"), Some(node()));
        let identity = IdentityPem {
            certificate: format!("{CERTIFICATE_BEGIN}\nc\n"),
            key: "-----BEGIN PRIVATE KEY-----\nk\n".into(),
            roots: "r".into(),
        };
        dir.store_identity(&identity, None).expect("written");
        let loaded = dir.load_identity().expect("readable");
        assert_eq!((&loaded.certificate, &loaded.roots), (&identity.certificate, &identity.roots));
        assert_eq!(loaded.key.trim_end(), identity.key.trim_end());
        let mode = fs::metadata(tmp.path().join("swarm/node.pem")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, SECRET_MODE);
        assert_eq!(sealed_of(&loaded.key), None);
        dir.store_identity(&loaded, Some(b"\x00sealed\xff")).expect("written");
        let sealed = dir.load_identity().expect("readable");
        assert_eq!(
            (sealed.certificate, sealed_of(&sealed.key)),
            (loaded.certificate, Some(b"\x00sealed\xff".into()))
        );
        assert!(dir.load_raft_key().is_err());
        dir.store_raft_key(&[1; 32]).expect("written");
        assert_eq!(dir.load_raft_key().expect("read"), [1; 32]);
        dir.remove_raft_key().expect("removed");
        assert!(dir.load_raft_key().is_err());
        assert_eq!(dir.load_epoch().expect("none yet"), 0);
        dir.store_epoch(3).expect("written");
        assert_eq!(dir.load_epoch().expect("readable"), 3);
        fs::write(tmp.path().join("swarm/epoch"), "x").expect("written");
        assert!(matches!(dir.load_epoch(), Err(DiskError::Damaged(..))), "no epoch is not epoch 0");
        dir.remove_all().expect("removed");
        dir.remove_all().expect("removing the absent is success");
        assert_eq!(dir.load().expect("readable"), None);
    }
}
