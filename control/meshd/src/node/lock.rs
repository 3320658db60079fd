//! Autolock: what opens a manager's disk, from the outside in.
//!
//! The data key seals the Raft data and, while the manager is locked, the node's own key. It is wrapped by the cluster's
//! unlock key, which is on no disk, or without autolock by one that lies beside it. `data.key` says which: every change
//! from one to the other is one write of that file, and what is written before and removed after it is of no use with the
//! file as it is then.

use std::io;
use std::sync::Arc;

use control_ca::{Certificate, CertificateError};
use control_consensus::{Consensus, DataKey, Kek, OpenError, Wrapping};
use control_model::Cluster;
use control_model::authority::UnlockKey;
use control_model::spec::Role;
use control_rpc::IdentityPem;
use control_store::{EventKind, ReplicatedStore as _};
use futures::StreamExt as _;
use tokio_util::sync::CancellationToken;

use super::swarm::Swarm;
use crate::disk::{DiskError, SwarmDir, sealed_of};

/// Where the data key seals the node's key.
const NODE_KEY: &str = "node key";

/// Why a node's secrets are not to be had, or not to be changed.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The user's key is needed.
    #[error("the disk of this manager is locked")]
    Locked,
    #[error("not the key that this manager's disk is locked with")]
    WrongKey,
    #[error("the node's key is sealed, and its data key is gone: leave the swarm, and join it anew")]
    NoDataKey,
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("can't read or write the data key's file")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Open(OpenError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

impl From<OpenError> for LockError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::WrongKey => Self::WrongKey,
            other => Self::Open(other),
        }
    }
}

/// What a node is itself by.
#[derive(Clone)]
pub struct Opened {
    pub pem: IdentityPem,
    /// Opens the data key, where there is one.
    pub kek: Option<Kek>,
}

/// Opens what is on the disk, with the user's key if it is `given`.
pub fn open(dir: &SwarmDir, given: Option<&UnlockKey>) -> Result<Opened, LockError> {
    let mut pem = dir.load_identity()?;
    let role = Certificate::parse(&pem.certificate)?.identity.role;
    let sealed = sealed_of(&pem.key);
    let stored = DataKey::stored(&dir.raft())?.map(|stored| stored.wrapping);
    let kek = match (stored, given) {
        // A worker's data key is left of a manager that it was.
        (Some(_), _) if role == Role::Worker && sealed.is_none() => None,
        (None, _) => None,
        (Some(wrapping), _) if !wrapping.is_locked => Some(Kek::with(dir.load_raft_key()?, wrapping)),
        (Some(_), None) => return Err(LockError::Locked),
        (Some(wrapping), Some(key)) => Some(Kek::with(key.0, wrapping)),
    };
    if let Some(kek) = &kek {
        let data_key = DataKey::open(&dir.raft(), kek)?;
        if let Some(sealed) = &sealed {
            let key = data_key.unseal(NODE_KEY, sealed)?;
            pem.key = String::from_utf8(key).map_err(|_| LockError::NoDataKey)?;
        }
    } else if sealed.is_some() {
        return Err(LockError::NoDataKey);
    }
    Ok(Opened { pem, kek })
}

/// The key for a new data key, as the cluster has it at this version; without autolock one that lies beside it.
pub fn new_kek(dir: &SwarmDir, unlock_key: Option<UnlockKey>, version: u64) -> Result<Kek, LockError> {
    if let Some(key) = unlock_key {
        dir.remove_raft_key()?;
        return Ok(Kek::with(key.0, Wrapping { is_locked: true, version }));
    }
    let bits = rand::random();
    dir.store_raft_key(&bits)?;
    Ok(Kek::with(bits, Wrapping { is_locked: false, version }))
}

/// Writes the node's identity: a locked manager's key goes to the disk sealed.
pub fn store_identity(dir: &SwarmDir, pem: &IdentityPem, kek: Option<&Kek>) -> Result<(), LockError> {
    let role = Certificate::parse(&pem.certificate)?.identity.role;
    let locks = kek.filter(|kek| kek.wrapping().is_locked && role == Role::Manager);
    let sealed = match locks {
        Some(kek) => Some(DataKey::open(&dir.raft(), kek)?.seal(NODE_KEY, pem.key.as_bytes())),
        None => None,
    };
    Ok(dir.store_identity(pem, sealed.as_deref())?)
}

/// Does `cluster` want another key than `now`, and is it no older picture than the one that asked for `now`?
fn is_outdated(now: &Kek, cluster: &Cluster) -> bool {
    let is_same = match cluster.ca.unlock_key {
        Some(key) => now.wrapping().is_locked && now.is(&key.0),
        None => !now.wrapping().is_locked,
    };
    !is_same && cluster.meta.version > now.wrapping().version
}

/// Wraps the data key as `cluster` wants it. Returns the key that opens it now, if it is another one.
pub fn rewrap(
    dir: &SwarmDir,
    pem: &IdentityPem,
    now: &Kek,
    cluster: &Cluster,
) -> Result<Option<Kek>, LockError> {
    if !is_outdated(now, cluster) {
        return Ok(None);
    }
    let data_key = DataKey::open(&dir.raft(), now)?;
    let version = cluster.meta.version;
    let next = if let Some(key) = cluster.ca.unlock_key {
        // Either key opens the data key, and that the node's: nothing is in the clear when the last write is done.
        dir.store_identity(pem, Some(&data_key.seal(NODE_KEY, pem.key.as_bytes())))?;
        let next = Kek::with(key.0, Wrapping { is_locked: true, version });
        data_key.wrap(&next)?;
        dir.remove_raft_key()?;
        next
    } else {
        let next = new_kek(dir, None, version)?;
        data_key.wrap(&next)?;
        dir.store_identity(pem, None)?;
        next
    };
    Ok(Some(next))
}

/// Keeps the disk of a running manager locked as the cluster wants it, until `stop`.
pub async fn follow(swarm: Arc<Swarm>, consensus: Arc<Consensus>, stop: CancellationToken) {
    let (_, mut events) = consensus.subscribe();
    loop {
        swarm.follow_lock();
        let changed = async {
            loop {
                let Some(batch) = events.next().await else { return false };
                if batch.events.iter().any(|event| matches!(event.kind, EventKind::Cluster(..))) {
                    return true;
                }
            }
        };
        match stop.run_until_cancelled(changed).await {
            Some(true) => {}
            Some(false) => events = consensus.subscribe().1,
            None => return,
        }
    }
}

#[cfg(test)]
mod tests;
