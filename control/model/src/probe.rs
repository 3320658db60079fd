//! The liveness probe of a node's data path: a VXLAN header (RFC 7348 section 5) with a VNI that is no network's, and
//! a token. The data path echoes the datagram as it is to the address that it came from.

/// VNI of probes. The same number is `ebpf_abi::PROBE_VNI`: the two sides share no crate, a test in `meshd` compares.
pub const PROBE_VNI: u32 = 0x00ff_ffff;

/// Bytes of a probe: header and token.
pub const PROBE_LEN: usize = 24;

/// The I flag: the VNI is valid.
const FLAG_VNI: u8 = 0x08;

/// The datagram that carries `token`.
pub fn probe_datagram(token: u128) -> [u8; PROBE_LEN] {
    let mut datagram = [0; PROBE_LEN];
    datagram[..8].copy_from_slice(&header());
    datagram[8..].copy_from_slice(&token.to_be_bytes());
    datagram
}

/// The token of an echoed probe; `None` if the datagram is no probe.
pub fn probe_token(datagram: &[u8]) -> Option<u128> {
    let (head, token) = datagram.split_first_chunk::<8>()?;
    (*head == header()).then(|| token.try_into().ok().map(u128::from_be_bytes)).flatten()
}

fn header() -> [u8; 8] {
    let [_, a, b, c] = PROBE_VNI.to_be_bytes();
    [FLAG_VNI, 0, 0, 0, a, b, c, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_returns_its_token_and_nothing_else_is_one() {
        let datagram = probe_datagram(7);
        assert_eq!(probe_token(&datagram), Some(7));
        assert_eq!(datagram[..8], [8, 0, 0, 0, 0xff, 0xff, 0xff, 0]);
        for broken in [&[][..], &datagram[..23], &[datagram.as_slice(), &[0]].concat(), &[0; PROBE_LEN]] {
            assert_eq!(probe_token(broken), None);
        }
    }
}
