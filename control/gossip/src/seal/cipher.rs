//! The header and the cipher of one datagram, and the keys of one stream.

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, KeyInit};
use control_model::NodeId;
use control_model::gossip::GossipKey;
use sha2::{Digest as _, Sha256};

/// Bytes in front of the text.
pub(super) const HEADER_LEN: usize = 1 + 4 + 16 + 16;
const TAG_LEN: usize = 16;
/// Bytes that sealing adds to a message.
pub const OVERHEAD: usize = HEADER_LEN + TAG_LEN;
const NONCE_LEN: usize = 12;

/// What a datagram is; each kind has keys of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// A message.
    Data = 1,
    /// "Give me a ticket": a random number.
    Question = 2,
    /// The number, and the ticket.
    Ticket = 3,
    /// "I don't know this ticket": the ticket.
    Unknown = 4,
}

/// What stands in front of the text, in clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub kind: Kind,
    pub key: u32,
    pub sender: NodeId,
    /// Of a message: ticket, then counter. Else random.
    pub nonce: u128,
}

impl Header {
    pub fn data(sender: NodeId, key: u32, ticket: u64, counter: u64) -> Self {
        let nonce = (u128::from(ticket) << 64) | u128::from(counter);
        Self { kind: Kind::Data, key, sender, nonce }
    }

    /// Ticket and counter.
    pub fn place(&self) -> (u64, u64) {
        let bytes = self.nonce.to_be_bytes();
        let half = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| bytes[at + i]));
        (half(0), half(8))
    }

    /// `None` for bytes that are none.
    pub fn read(datagram: &[u8]) -> Option<Self> {
        let (kind, rest) = datagram.split_first()?;
        let (key, rest) = rest.split_first_chunk::<4>()?;
        let (sender, rest) = rest.split_first_chunk::<16>()?;
        let (nonce, _) = rest.split_first_chunk::<16>()?;
        let kind = match kind {
            1 => Kind::Data,
            2 => Kind::Question,
            3 => Kind::Ticket,
            4 => Kind::Unknown,
            _ => return None,
        };
        Some(Self {
            kind,
            key: u32::from_be_bytes(*key),
            sender: NodeId::from_bits(u128::from_be_bytes(*sender)),
            nonce: u128::from_be_bytes(*nonce),
        })
    }

    fn bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [self.kind as u8; HEADER_LEN];
        bytes[1..5].copy_from_slice(&self.key.to_be_bytes());
        bytes[5..21].copy_from_slice(&self.sender.bits().to_be_bytes());
        bytes[21..].copy_from_slice(&self.nonce.to_be_bytes());
        bytes
    }

    /// The key of a message depends on the ticket, and its nonce is the counter: none is ever used twice, for tickets are
    /// drawn by the receiver for each question. The other kinds have keys that last and random nonces of 96 bits: some
    /// thousands in a rotation period, far below the 2³² of NIST SP 800-38D section 8.3.
    fn cipher(&self, key: &GossipKey, to: NodeId) -> (Aes256Gcm, [u8; NONCE_LEN]) {
        let ticket = match self.kind {
            Kind::Data => self.place().0,
            Kind::Question | Kind::Ticket | Kind::Unknown => 0,
        };
        let ids = [self.sender.bits().to_be_bytes(), to.bits().to_be_bytes()].concat();
        let subkey = derive(&key.key, self.kind as u8, &ids, &u128::from(ticket).to_be_bytes());
        let bytes = self.nonce.to_be_bytes();
        let mut nonce: [u8; NONCE_LEN] = std::array::from_fn(|i| bytes[4 + i]);
        if self.kind == Kind::Data {
            nonce[..4].fill(0);
        }
        (Aes256Gcm::new((&subkey).into()), nonce)
    }
}

/// A key for one purpose. All parts have fixed lengths, and what comes out is secret.
fn derive(key: &[u8; 32], purpose: u8, who: &[u8], what: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(key);
    hash.update([purpose]);
    hash.update(who);
    hash.update(what);
    let hash = hash.finalize();
    std::array::from_fn(|i| hash[i])
}

pub(super) fn seal(key: &GossipKey, header: &Header, to: NodeId, text: &[u8]) -> Vec<u8> {
    let (cipher, nonce) = header.cipher(key, to);
    let bytes = header.bytes();
    let aad = [&bytes[..], &to.bits().to_be_bytes()].concat();
    let sealed = cipher.encrypt((&nonce).into(), Payload { msg: text, aad: &aad });
    let mut datagram = bytes.to_vec();
    datagram.extend(sealed.expect("messages are smaller than the 64 GiB that AES-GCM takes"));
    datagram
}

pub(super) fn open(key: &GossipKey, header: &Header, to: NodeId, sealed: &[u8]) -> Option<Vec<u8>> {
    let (cipher, nonce) = header.cipher(key, to);
    let aad = [&header.bytes()[..], &to.bits().to_be_bytes()].concat();
    cipher.decrypt((&nonce).into(), Payload { msg: sealed, aad: &aad }).ok()
}

/// The purposes of a stream's keys.
const OF_CALLER: u8 = 16;
const OF_SERVER: u8 = 17;

/// Seals the frames of one end of a stream and opens those of the other, each once and in their order: the keys are made of
/// a number that each end has drawn for this stream.
pub struct StreamKeys {
    mine: Aes256Gcm,
    theirs: Aes256Gcm,
    n_sealed: u64,
    n_opened: u64,
}

impl StreamKeys {
    /// Of the end that has called, or of the one that was called.
    pub fn new(
        key: &GossipKey,
        (caller, caller_number): (NodeId, u128),
        (server, server_number): (NodeId, u128),
        is_caller: bool,
    ) -> Self {
        let bytes = |id: NodeId| id.bits().to_be_bytes();
        let who = [bytes(caller), bytes(server)].concat();
        let what = [caller_number.to_be_bytes(), server_number.to_be_bytes()].concat();
        let cipher = |purpose| Aes256Gcm::new((&derive(&key.key, purpose, &who, &what)).into());
        let (of_caller, of_server) = (cipher(OF_CALLER), cipher(OF_SERVER));
        let (mine, theirs) = if is_caller { (of_caller, of_server) } else { (of_server, of_caller) };
        Self { mine, theirs, n_sealed: 0, n_opened: 0 }
    }

    /// The next frame.
    pub fn seal(&mut self, text: &[u8]) -> Vec<u8> {
        let nonce = counted(&mut self.n_sealed);
        self.mine.encrypt((&nonce).into(), text).expect("frames are smaller than AES-GCM's limit")
    }

    /// The text of the next frame; `None` if it is not what the other end has sealed.
    pub fn open(&mut self, sealed: &[u8]) -> Option<Vec<u8>> {
        let nonce = counted(&mut self.n_opened);
        self.theirs.decrypt((&nonce).into(), sealed).ok()
    }
}

fn counted(n: &mut u64) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    nonce[4..].copy_from_slice(&n.to_be_bytes());
    *n += 1;
    nonce
}
