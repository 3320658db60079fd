//! Messages of the kernel's socket diagnosis (`linux/inet_diag.h`, `linux/sock_diag.h`): numbers of one machine in its own
//! byte order, addresses and ports in the network's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;

/// `struct nlmsghdr`: length, type, flags, sequence number, port.
const HEADER_BYTES: usize = 16;
/// `struct inet_diag_sockid`: ports, source, destination, interface, cookie.
const ID_BYTES: usize = 48;
/// Of the destination in it.
const ID_DESTINATION: usize = 20;
/// Of the cookie in it, whose lower half comes first.
const ID_COOKIE: usize = 40;
/// Of the id in `struct inet_diag_msg`.
const MESSAGE_ID: usize = 4;
const INET_DIAG_REQ_BYTECODE: u16 = 1;

/// States in which a TCP socket has a peer whose silence it would wait for: established, SYN sent, both FIN waits, close
/// wait, last ACK, closing (bits by `net/tcp_states.h`). A connected UDP socket is "established".
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// The same, and the state of datagram sockets without a peer: that of a closed TCP socket.
const STATES_OF_ALL: u32 = STATES | 1 << 7;

/// Opcodes of the comparison (`struct inet_diag_bc_op`).
const JUMP: u8 = 1;
const DESTINATION_IS: u8 = 8;
/// Bytes of a jump, and of a comparison with an IPv4 address.
const JUMP_BYTES: u8 = 4;
const COMPARISON_BYTES: u8 = 16;
/// What the code of one address takes.
const STEP_BYTES: u16 = COMPARISON_BYTES as u16 + JUMP_BYTES as u16;

/// What kind of socket is meant.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    family: libc::c_int,
    protocol: libc::c_int,
}

/// IPv6 sockets too: IPv4 peers are theirs by mapped addresses.
pub(super) const KINDS: [Kind; 4] = [
    Kind { family: libc::AF_INET, protocol: libc::IPPROTO_TCP },
    Kind { family: libc::AF_INET6, protocol: libc::IPPROTO_TCP },
    Kind { family: libc::AF_INET, protocol: libc::IPPROTO_UDP },
    Kind { family: libc::AF_INET6, protocol: libc::IPPROTO_UDP },
];

impl Kind {
    pub(super) fn is_ipv6(self) -> bool {
        self.family == libc::AF_INET6
    }
}

/// A socket that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    is_ipv6: bool,
    id: [u8; ID_BYTES],
}

/// A message from the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Socket(Found),
    /// The last answer: an error number, 0 for success.
    End(i32),
}

impl Found {
    /// No socket: no port is 0, and no cookie.
    pub(super) const NONE: Self = Self { is_ipv6: false, id: [0; ID_BYTES] };

    /// The number that is this socket's alone, and what BPF programs know it by.
    pub(super) fn cookie(&self) -> u64 {
        let half =
            |at: usize| u64::from(u32_at(&self.id, at).expect("a cookie is the id's last eight bytes"));
        half(ID_COOKIE) | half(ID_COOKIE + 4) << 32
    }

    pub(super) fn peer(&self) -> IpAddr {
        let mut address = [0; 16];
        address.copy_from_slice(&self.id[ID_DESTINATION..ID_DESTINATION + 16]);
        if self.is_ipv6 {
            Ipv6Addr::from(address).into()
        } else {
            Ipv4Addr::new(address[0], address[1], address[2], address[3]).into()
        }
    }
}

/// Which sockets are asked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted<'a> {
    /// With a peer among these, which are few; none, where there are none.
    With(&'a [Ipv4Addr]),
    All,
    /// Those without a peer too.
    EvenAlone,
}

/// Asks for sockets, which have a peer unless it says otherwise.
pub(super) fn list(kind: Kind, wanted: Wanted<'_>) -> Vec<u8> {
    let (states, code) = match wanted {
        Wanted::With([]) => (0, Vec::new()),
        Wanted::With(peers) => (STATES, comparison(peers)),
        Wanted::All => (STATES, Vec::new()),
        Wanted::EvenAlone => (STATES_OF_ALL, Vec::new()),
    };
    let mut payload = request(kind, states, &[0; ID_BYTES]);
    if !code.is_empty() {
        let n_bytes = u16::try_from(code.len() + 4).expect("the peers of one dump are few");
        payload.extend(n_bytes.to_ne_bytes());
        payload.extend(INET_DIAG_REQ_BYTECODE.to_ne_bytes());
        payload.extend(code);
    }
    message(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, &payload)
}

/// Asks for the end of a socket.
pub(super) fn destroy(kind: Kind, socket: &Found) -> Vec<u8> {
    message(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, &request(kind, STATES, &socket.id))
}

/// The messages in `bytes`. Ends where they make no sense.
pub(super) fn answers(mut bytes: &[u8]) -> impl Iterator<Item = Answer> + '_ {
    std::iter::from_fn(move || {
        loop {
            let n_bytes = usize::try_from(u32_at(bytes, 0)?).ok()?;
            let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
            let payload = bytes.get(HEADER_BYTES..n_bytes)?;
            bytes = bytes.get(n_bytes.next_multiple_of(4)..).unwrap_or_default();
            match kind {
                SOCK_DIAG_BY_FAMILY => return Some(Answer::Socket(found(payload)?)),
                NLMSG_ERROR | NLMSG_DONE => {
                    // Linux gives errors as negative numbers.
                    let code = u32_at(payload, 0)?.cast_signed();
                    return Some(Answer::End(code.saturating_neg().max(0)));
                }
                _ => {}
            }
        }
    })
}

fn found(payload: &[u8]) -> Option<Found> {
    let is_ipv6 = libc::c_int::from(*payload.first()?) == libc::AF_INET6;
    let id = payload.get(MESSAGE_ID..MESSAGE_ID + ID_BYTES)?.try_into().ok()?;
    Some(Found { is_ipv6, id })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
    let n_bytes = u32::try_from(HEADER_BYTES + payload.len()).expect("messages are short");
    let mut message = Vec::with_capacity(HEADER_BYTES + payload.len());
    message.extend(n_bytes.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(payload);
    message
}

/// `struct inet_diag_req_v2`.
fn request(kind: Kind, states: u32, id: &[u8; ID_BYTES]) -> Vec<u8> {
    let byte = |number: libc::c_int| u8::try_from(number).expect("families and protocols are small numbers");
    let mut request = vec![byte(kind.family), byte(kind.protocol), 0, 0];
    request.extend(states.to_ne_bytes());
    request.extend(id);
    request
}

/// Code that the kernel runs over each socket: is its peer the first of `peers`, or the second, … A socket is taken if
/// the code is left exactly at its end. The kernel compares IPv4 addresses with mapped ones as well.
fn comparison(peers: &[Ipv4Addr]) -> Vec<u8> {
    let mut code = Vec::with_capacity(peers.len() * usize::from(STEP_BYTES));
    for (n_left, peer) in (1..=peers.len()).rev().zip(peers) {
        let n_left = u16::try_from(n_left).expect("the peers of one dump are few");
        // Beyond the end, where no peer is left.
        let otherwise = if n_left == 1 { STEP_BYTES + u16::from(JUMP_BYTES) } else { STEP_BYTES };
        let to_end = n_left * STEP_BYTES - u16::from(COMPARISON_BYTES);
        let family = u8::try_from(libc::AF_INET).expect("2");
        code.extend([DESTINATION_IS, COMPARISON_BYTES]);
        code.extend(otherwise.to_ne_bytes());
        // Family, prefix length, padding; any port.
        code.extend([family, 32, 0, 0]);
        code.extend((-1_i32).to_ne_bytes());
        code.extend(peer.octets());
        code.extend([JUMP, JUMP_BYTES]);
        code.extend(to_end.to_ne_bytes());
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_are_survived() {
        let whole = [
            message(SOCK_DIAG_BY_FAMILY, 0, &[2; 72]),
            message(17, 0, &[]),
            message(NLMSG_ERROR, 0, &(-2_i32).to_ne_bytes()),
        ]
        .concat();
        let found = Found { is_ipv6: false, id: [2; ID_BYTES] };
        let all: Vec<Answer> = answers(&whole).collect();
        assert_eq!(all, [Answer::Socket(found.clone()), Answer::End(libc::ENOENT)]);
        assert_eq!(found.peer(), IpAddr::from([2, 2, 2, 2]));

        for n_bytes in 0..whole.len() {
            assert!(answers(&whole[..n_bytes]).count() < 2);
        }
        // A message that claims to be shorter than its header.
        for n_bytes in 0..16_u8 {
            assert_eq!(answers(&[&[n_bytes, 0, 0, 0][..], &[0; 60]].concat()).count(), 0);
        }
    }

    #[test]
    fn a_failed_dump_says_why() {
        let done = message(NLMSG_DONE, 0, &0_i32.to_ne_bytes());
        assert_eq!(answers(&done).next(), Some(Answer::End(0)));
        let smallest = message(NLMSG_DONE, 0, &i32::MIN.to_ne_bytes());
        assert_eq!(answers(&smallest).next(), Some(Answer::End(i32::MAX)));
    }
}
