//! What a task may say of itself behind the gateway bridge: its MAC is `02:42` and its IPv4 address there; its IPv6 address has the
//! same host number.

use ebpf_abi::limits::BRIDGE_VNI;
use ebpf_abi::{Attachment, DropReason, Ip, Ip4, protocol};

use super::{Step, Verdict, Walk};
use crate::frame::{ETHERNET, at};
use crate::network::{Family, Network, Piece};

/// What nodes say to their link before they have another address there than a link-local one: router solicitation, neighbour
/// solicitation and advertisement (RFC 4861 section 4), and which groups they listen to (RFC 2710, RFC 3810).
const OF_LINK: [u8; 6] = [133, 135, 136, 131, 132, 143];
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

impl Walk<'_> {
    /// A question or an answer, by its sender (RFC 826).
    pub fn own_arp(&self, attachment: &Attachment) -> Step {
        let said: [u8; 28] = at(&self.frame, ETHERNET).ok_or(DropReason::Malformed)?;
        let is_own = said[..6] == [0, 1, 8, 0, 6, 4]
            && said[8..14] == attachment.mac.0
            && at(&said, 14).map(Ip4) == own(attachment);
        pass_if(is_own)
    }

    pub fn own_packet(&self, attachment: &Attachment, ip: &Network) -> Step {
        let is_given = |address: Ip| {
            own(attachment).is_some_and(|own| self.tables.name(BRIDGE_VNI, address) == Some(own))
        };
        if ip.family == Family::V4 {
            return pass_if(is_given(ip.source));
        }
        let message = ETHERNET + ip.header_len;
        let kind = if ip.protocol == protocol::ICMP6 && ip.piece != Piece::Later {
            at::<1>(&self.frame, message).ok_or(DropReason::Malformed)?[0]
        } else {
            0
        };
        let is_nobodys = ip.source == Ip::UNSPECIFIED;
        if kind == ADVERTISEMENT || (kind == SOLICITATION && is_nobodys) {
            let target = Ip(at(&self.frame, message + 8).ok_or(DropReason::Malformed)?);
            if !is_given(target) && target != link_local(attachment) {
                return Err(DropReason::SourceAddress);
            }
        }
        let is_of_link = OF_LINK.contains(&kind) && (is_nobodys || ip.source == link_local(attachment));
        pass_if(is_of_link || is_given(ip.source))
    }
}

fn pass_if(is_own: bool) -> Step {
    if is_own { Ok(Verdict::Pass) } else { Err(DropReason::SourceAddress) }
}

fn own(attachment: &Attachment) -> Option<Ip4> {
    attachment.mac.0.strip_prefix(&[2, 0x42]).and_then(|bytes| at(bytes, 0)).map(Ip4)
}

/// RFC 4291 appendix A: the MAC with a bit turned and two bytes in its middle.
fn link_local(attachment: &Attachment) -> Ip {
    let mac = attachment.mac.0;
    let [start, end] = [[mac[0] ^ 2, mac[1], mac[2], 0xff], [0xfe, mac[3], mac[4], mac[5]]];
    let all = [&[0xfe, 0x80, 0, 0, 0, 0, 0, 0], &start[..], &end].concat();
    Ip(all.try_into().unwrap())
}
