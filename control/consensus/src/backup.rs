//! Backups: the whole state of a cluster in one sealed file, and a cluster of one manager made of it.
//!
//! The file: magic, how the key is made of the user's secret, salt, then the sealed content. The first three are
//! authenticated with the content. Nothing in it can be read, or changed unnoticed, without the secret.

use std::fmt;

use argon2::{Algorithm, Argon2, Params, Version};
use control_model::{ClusterId, NodeId, Timestamp};
use control_store::State;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::crypt::Key;

const MAGIC: &[u8; 8] = b"MESHBAK1";
const SALT_LEN: usize = 16;
/// Magic, kind, salt.
const HEADER_LEN: usize = MAGIC.len() + 1 + SALT_LEN;
const OF_PASSPHRASE: u8 = 1;
const OF_KEY_FILE: u8 = 2;

/// Argon2id, the second recommended choice of RFC 9106, section 4, on one lane: 64 MiB, three passes. About 0.2 s.
const MEMORY_KIB: u32 = 64 << 10;
const PASSES: u32 = 3;

/// A key file shorter than this is no key.
pub const MIN_KEY_FILE_LEN: usize = 32;
/// A passphrase shorter than this protects nothing.
pub const MIN_PASSPHRASE_LEN: usize = 12;

/// What a backup is sealed under.
#[derive(Clone)]
pub enum BackupSecret {
    /// Words of a person's.
    Passphrase(Zeroizing<String>),
    /// The content of a file of random bytes.
    KeyFile(Zeroizing<Vec<u8>>),
}

impl fmt::Debug for BackupSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BackupSecret(..)")
    }
}

/// A cluster as it was at one moment.
#[derive(Clone)]
pub struct Backup {
    pub taken_at: Timestamp,
    /// The manager that it was taken from.
    pub node: NodeId,
    pub cluster: ClusterId,
    pub state: State,
}

/// What is sealed.
#[derive(Serialize, Deserialize)]
struct Content {
    taken_at: Timestamp,
    node: NodeId,
    cluster: ClusterId,
    /// [`State::to_snapshot`].
    #[serde(with = "serde_bytes")]
    image: Vec<u8>,
}

/// Why a backup could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("a passphrase for a backup needs at least {MIN_PASSPHRASE_LEN} characters")]
    ShortPassphrase,
    #[error(
        "a key file for a backup needs at least {MIN_KEY_FILE_LEN} random bytes: head -c 32 /dev/urandom > FILE"
    )]
    ShortKeyFile,
    #[error("this is no backup of a cluster, or of a later version of this program")]
    Foreign,
    #[error("this backup is sealed with a {0}")]
    OtherSecret(&'static str),
    /// Which of the three can't be told: that is the point of it.
    #[error("the backup can't be opened: another secret, or the file is damaged or cut off")]
    Sealed,
    #[error("the backup's content can't be read: it may be of a later version of this program")]
    Unreadable,
}

impl Backup {
    /// The file's bytes. Takes a moment for a passphrase: blocks.
    pub fn seal(&self, secret: &BackupSecret) -> Result<Vec<u8>, BackupError> {
        secret.check()?;
        let content = Content {
            taken_at: self.taken_at,
            node: self.node,
            cluster: self.cluster,
            image: self.state.to_snapshot(),
        };
        let plain = Zeroizing::new(rmp_serde::to_vec_named(&content).map_err(|_| BackupError::Unreadable)?);
        let salt: [u8; SALT_LEN] = rand::random();
        let mut file = [MAGIC.as_slice(), &[secret.kind()], &salt].concat();
        let sealed = secret.key(&salt).seal(&file, &plain);
        file.extend_from_slice(&sealed);
        Ok(file)
    }

    /// What a file's bytes hold. Blocks as [`Backup::seal`] does.
    pub fn open(file: &[u8], secret: &BackupSecret) -> Result<Self, BackupError> {
        let (header, sealed) = file.split_at_checked(HEADER_LEN).ok_or(BackupError::Foreign)?;
        let (magic, rest) = header.split_at(MAGIC.len());
        let (kind, salt) = rest.split_first().ok_or(BackupError::Foreign)?;
        if magic != MAGIC {
            return Err(BackupError::Foreign);
        }
        match *kind {
            kind if kind == secret.kind() => {}
            OF_PASSPHRASE => return Err(BackupError::OtherSecret("passphrase")),
            OF_KEY_FILE => return Err(BackupError::OtherSecret("key file")),
            _ => return Err(BackupError::Foreign),
        }
        let plain = secret.key(salt).open(header, sealed).map_err(|_| BackupError::Sealed)?;
        let plain = Zeroizing::new(plain);
        let content: Content = rmp_serde::from_slice(&plain).map_err(|_| BackupError::Unreadable)?;
        let state = State::from_snapshot(&content.image).map_err(|_| BackupError::Unreadable)?;
        let Content { taken_at, node, cluster, .. } = content;
        Ok(Self { taken_at, node, cluster, state })
    }
}

impl BackupSecret {
    fn kind(&self) -> u8 {
        match self {
            Self::Passphrase(_) => OF_PASSPHRASE,
            Self::KeyFile(_) => OF_KEY_FILE,
        }
    }

    fn check(&self) -> Result<(), BackupError> {
        match self {
            Self::Passphrase(words) if words.chars().count() < MIN_PASSPHRASE_LEN => {
                Err(BackupError::ShortPassphrase)
            }
            Self::KeyFile(bytes) if bytes.len() < MIN_KEY_FILE_LEN => Err(BackupError::ShortKeyFile),
            _ => Ok(()),
        }
    }

    /// A person's words are stretched, so that guessing costs; random bytes need no more than another salt each time.
    fn key(&self, salt: &[u8]) -> Key {
        let mut bits = [0; 32];
        match self {
            Self::Passphrase(words) => {
                let params = Params::new(MEMORY_KIB, PASSES, 1, Some(bits.len()));
                let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params.expect("within bounds"));
                let stretched = argon.hash_password_into(words.as_bytes(), salt, &mut bits);
                stretched.expect("the salt is long enough, and the words are no longer than 4 GiB");
            }
            Self::KeyFile(bytes) => {
                let digest = Sha256::new().chain_update(b"mesh backup key file").chain_update(salt);
                bits.copy_from_slice(&digest.chain_update(bytes.as_slice()).finalize());
            }
        }
        Key::new(bits)
    }
}

#[cfg(test)]
mod tests {
    use control_model::change::{Change, Entry, Object, RequestId};
    use control_model::object::Cluster;

    use super::*;

    fn backup() -> Backup {
        let cluster = ClusterId::from_bits(7);
        let object = Object::Cluster(Box::new(Cluster { epoch: 3, ..Cluster::new(cluster) }));
        let entry = Entry { request: RequestId(1), at: Timestamp(5), changes: vec![Change::Create(object)] };
        let mut state = State::default();
        state.apply(9, &entry).unwrap();
        Backup { taken_at: Timestamp(6), node: NodeId::from_bits(4), cluster, state }
    }

    fn words(text: &str) -> BackupSecret {
        BackupSecret::Passphrase(Zeroizing::new(text.to_owned()))
    }

    fn bytes(byte: u8) -> BackupSecret {
        BackupSecret::KeyFile(Zeroizing::new(vec![byte; MIN_KEY_FILE_LEN]))
    }

    #[test]
    fn a_backup_returns_to_who_has_its_secret() {
        for secret in [words("correct horse battery"), bytes(1)] {
            let file = backup().seal(&secret).unwrap();
            let again = Backup::open(&file, &secret).unwrap();
            assert_eq!((again.node, again.cluster), (NodeId::from_bits(4), ClusterId::from_bits(7)));
            assert_eq!(again.state.to_snapshot(), backup().state.to_snapshot());
            assert_ne!(backup().seal(&secret).unwrap(), file, "another salt and nonce each time");
        }
        let file = backup().seal(&words("correct horse battery")).unwrap();
        assert!(matches!(Backup::open(&file, &words("correct horse bakery")), Err(BackupError::Sealed)));
        assert!(matches!(Backup::open(&file, &bytes(1)), Err(BackupError::OtherSecret("passphrase"))));
        let file = backup().seal(&bytes(1)).unwrap();
        assert!(matches!(Backup::open(&file, &bytes(2)), Err(BackupError::Sealed)));
    }

    #[test]
    fn a_flipped_bit_or_a_cut_anywhere_is_found() {
        let file = backup().seal(&bytes(1)).unwrap();
        for at in 0..file.len() {
            let mut flipped = file.clone();
            flipped[at] ^= 1;
            assert!(Backup::open(&flipped, &bytes(1)).is_err(), "byte {at}");
            assert!(Backup::open(&file[..at], &bytes(1)).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn secrets_that_protect_nothing_are_refused() {
        assert!(matches!(backup().seal(&words("hunter2")), Err(BackupError::ShortPassphrase)));
        let short = BackupSecret::KeyFile(Zeroizing::new(vec![0; 31]));
        assert!(matches!(backup().seal(&short), Err(BackupError::ShortKeyFile)));
    }
}
