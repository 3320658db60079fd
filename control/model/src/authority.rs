//! The cluster's certificate authority, and what else the managers alone may know.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The cluster's certificate authority and join secrets.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaState {
    /// The root that nodes trust, PEM.
    pub root_cert: String,
    /// PEM of its key, which signs unless `rotation` says otherwise.
    pub root_key: String,
    /// Full tokens, `SWMTKN-1-…`.
    pub worker_token: String,
    pub manager_token: String,
    /// Locks the managers' disks; `None` without autolock.
    #[serde(default)]
    pub unlock_key: Option<UnlockKey>,
    /// The root, signed by the one before it, PEM: part of every chain, for nodes that were away when the root changed.
    /// Empty for a cluster's first root.
    #[serde(default)]
    pub cross_signed: String,
    /// On the way to another root.
    #[serde(default)]
    pub rotation: Option<RootRotation>,
    /// The spec's `force_rotate` that was last acted upon.
    #[serde(default)]
    pub last_forced_rotation: u64,
    /// Digest of the public key that signs certificates now; see [`NodeTls::issuer`]. `None` in states of daemons that
    /// knew no rotation.
    #[serde(default)]
    pub issuer: Option<KeyDigest>,
}

/// SHA-256.
pub type KeyDigest = [u8; 32];

/// The root that is to come. It signs already; nodes still trust the one before, by which it is signed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootRotation {
    /// PEM.
    pub root_cert: String,
    pub root_key: String,
    /// The same certificate signed by the present root.
    pub cross_signed: String,
}

impl fmt::Debug for RootRotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootRotation").finish_non_exhaustive()
    }
}

/// What a node holds of the certificate authority, as it says itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeTls {
    /// Digest of the PEM of the root that it trusts.
    pub trust_root: KeyDigest,
    /// Digest of the public key (`SubjectPublicKeyInfo`, DER) that signed its certificate.
    pub issuer: KeyDigest,
}

impl fmt::Debug for CaState {
    /// Keeps keys and tokens out of logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaState").finish_non_exhaustive()
    }
}

/// The 256 bits that wrap each manager's data key while the cluster is locked by autolock.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnlockKey(pub [u8; 32]);

impl fmt::Debug for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnlockKey(..)")
    }
}
