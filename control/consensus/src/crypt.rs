//! Encryption at rest: every record of the log, every snapshot and the data key itself.
//!
//! The cipher is XAES-256-GCM (C2SP): AES-256-GCM under a key derived per record from 12 random bytes of a 24-byte
//! nonce. Nonces of this size can be drawn at random for 2^80 records, so there is no counter to be kept, and none
//! to be repeated when a disk is restored from a backup or cloned: plain AES-GCM with its 12 bytes allows neither.
//! The place of a record (table and key) is authenticated with it: a record moved elsewhere doesn't open.

use std::fmt;

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::aes::Aes256;
use aes_gcm::aes::cipher::{Block, BlockCipherEncrypt};
use aes_gcm::{Aes256Gcm, KeyInit};
use zeroize::Zeroize;

/// First byte of what [`Key::seal`] makes.
const FORMAT: u8 = 1;
const NONCE_LEN: usize = 24;
/// Bytes of the nonce that derive the record's key; the rest is the nonce of AES-GCM.
const DERIVE_LEN: usize = 12;
const TAG_LEN: usize = 16;
/// Bytes that sealing adds.
pub(crate) const OVERHEAD: usize = 1 + NONCE_LEN + TAG_LEN;

/// A 256-bit key.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Key([u8; 32]);

/// The key that wraps a manager's data key. With autolock it is the user's; without, it lies beside the data.
#[derive(Clone, PartialEq, Eq)]
pub struct Kek {
    key: Key,
    wrapping: Wrapping,
}

/// What the data key's file says of the key that opens it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wrapping {
    /// The key is the user's, and nowhere on this disk.
    pub is_locked: bool,
    /// Version of the cluster that asked for this key: an older picture of the cluster changes nothing.
    pub version: u64,
}

impl Kek {
    /// The key of these 256 random bits, which lies beside the data.
    pub fn new(bits: [u8; 32]) -> Self {
        Self::with(bits, Wrapping::default())
    }

    /// The key of these 256 random bits, as the cluster's `version` asks for it.
    pub fn with(bits: [u8; 32], wrapping: Wrapping) -> Self {
        Self { key: Key(bits), wrapping }
    }

    /// Where the key is, and since when.
    pub fn wrapping(&self) -> Wrapping {
        self.wrapping
    }

    /// Is this the key of these bits?
    pub fn is(&self, bits: &[u8; 32]) -> bool {
        self.key.bits() == bits
    }

    pub(crate) fn key(&self) -> &Key {
        &self.key
    }
}

/// The bytes were not sealed by this key for this place, or were changed since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unsealable;

impl Key {
    pub(crate) fn new(bits: [u8; 32]) -> Self {
        Self(bits)
    }

    pub(crate) fn random() -> Self {
        Self(rand::random())
    }

    pub(crate) fn bits(&self) -> &[u8; 32] {
        &self.0
    }

    /// `plain`, encrypted for `place`.
    pub(crate) fn seal(&self, place: &[u8], plain: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut sealed = Vec::with_capacity(plain.len() + OVERHEAD);
        sealed.push(FORMAT);
        sealed.extend_from_slice(&nonce);
        sealed.extend(self.encrypt(&nonce, place, plain));
        sealed
    }

    /// What was sealed for `place`.
    pub(crate) fn open(&self, place: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Unsealable> {
        let (&format, rest) = sealed.split_first().ok_or(Unsealable)?;
        let (nonce, text) = rest.split_first_chunk::<NONCE_LEN>().ok_or(Unsealable)?;
        if format != FORMAT {
            return Err(Unsealable);
        }
        let (cipher, iv) = self.derive(nonce);
        cipher.decrypt((&iv).into(), Payload { msg: text, aad: place }).map_err(|_| Unsealable)
    }

    fn encrypt(&self, nonce: &[u8; NONCE_LEN], place: &[u8], plain: &[u8]) -> Vec<u8> {
        let (cipher, iv) = self.derive(nonce);
        cipher
            .encrypt((&iv).into(), Payload { msg: plain, aad: place })
            .expect("records are smaller than the 64 GiB that AES-GCM takes")
    }

    /// The cipher and nonce of one record (C2SP XAES-256-GCM, "Overview": `CMAC` of two blocks is the key).
    fn derive(&self, nonce: &[u8; NONCE_LEN]) -> (Aes256Gcm, [u8; 12]) {
        let cipher = Aes256::new((&self.0).into());
        let subkey = double(encrypt_block(&cipher, [0; 16]));
        let mut key = [0; 32];
        for (counter, half) in (1..).zip(key.chunks_exact_mut(16)) {
            let mut block = [0; 16];
            block[1] = counter;
            block[2] = b'X';
            block[4..].copy_from_slice(&nonce[..DERIVE_LEN]);
            for (byte, mask) in block.iter_mut().zip(subkey) {
                *byte ^= mask;
            }
            half.copy_from_slice(&encrypt_block(&cipher, block));
        }
        let iv = std::array::from_fn(|i| nonce[DERIVE_LEN + i]);
        (Aes256Gcm::new((&key).into()), iv)
    }
}

fn encrypt_block(cipher: &Aes256, block: [u8; 16]) -> [u8; 16] {
    let mut block = Block::<Aes256>::from(block);
    cipher.encrypt_block(&mut block);
    block.into()
}

/// Doubling in GF(2^128) as CMAC defines it (RFC 4493 §2.3), without a branch on the secret.
fn double(block: [u8; 16]) -> [u8; 16] {
    let value = u128::from_be_bytes(block);
    ((value << 1) ^ ((value >> 127) * 0x87)).to_be_bytes()
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl fmt::Debug for Kek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kek(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        use std::fmt::Write;
        bytes.iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").unwrap();
            text
        })
    }

    /// C2SP XAES-256-GCM, "Test vectors": one for each value of the top bit in the doubling.
    #[test]
    fn matches_the_specification() {
        let nonce = b"ABCDEFGHIJKLMNOPQRSTUVWX";
        let text = Key([1; 32]).encrypt(nonce, b"", b"XAES-256-GCM");
        assert_eq!(hex(&text), "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271");
        let text = Key([3; 32]).encrypt(nonce, b"c2sp.org/XAES-256-GCM", b"XAES-256-GCM");
        assert_eq!(hex(&text), "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d");
    }

    #[test]
    fn opens_only_what_was_sealed_here() {
        let key = Key::random();
        let sealed = key.seal(b"log 1", b"secret");
        assert_eq!(sealed.len(), b"secret".len() + OVERHEAD);
        assert_eq!(key.open(b"log 1", &sealed), Ok(b"secret".to_vec()));
        assert_eq!(key.open(b"log 2", &sealed), Err(Unsealable));
        assert_eq!(Key::random().open(b"log 1", &sealed), Err(Unsealable));
        for at in 0..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[at] ^= 1;
            assert_eq!(key.open(b"log 1", &flipped), Err(Unsealable), "byte {at}");
            assert_eq!(key.open(b"log 1", &sealed[..at]), Err(Unsealable), "cut at {at}");
        }
        assert_ne!(key.seal(b"log 1", b"secret"), sealed);
    }
}
