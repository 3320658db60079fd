//! Who has an address: ARP and neighbour discovery, answered where the question is asked.

use ebpf_abi::limits::ROUTER_MAC;
use ebpf_abi::{Attachment, DropReason, EndpointKey, Ip, Ip4, MacAddr, VipKey, protocol};

use super::{Step, Verdict, Walk, Way};
use crate::frame::{ETHERNET, Link, at, checksum, put};
use crate::network::{Family, Network, pseudo_header};

impl Walk<'_> {
    /// Answers who-has (RFC 826) for the gateway, virtual addresses and endpoints.
    pub fn arp(&mut self, attachment: &Attachment) -> Step {
        const WHO_HAS: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
        let question: [u8; 28] = at(&self.frame, ETHERNET).ok_or(DropReason::Malformed)?;
        if question[..8] != WHO_HAS {
            return Err(DropReason::NeighbourUnanswered);
        }
        if question[8..14] != attachment.mac.0 {
            return Err(DropReason::SourceAddress);
        }
        let target = Ip4(at(&question, 24).ok_or(DropReason::Malformed)?);
        let MacAddr(mac) = self.mac_of_other(attachment, target)?;
        let mut answer = [attachment.mac.0, mac].concat();
        answer.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
        answer.extend(mac);
        answer.extend(target.0);
        answer.extend(&question[8..18]);
        put(&mut self.frame, 0, &answer);
        Ok(Verdict::Forward(Way::Out(self.packet.ifindex)))
    }

    /// Answers a neighbour solicitation (RFC 4861 sections 4.3 and 7.2.4) by an advertisement that is solicited and overrides.
    /// `None` for any other packet; section 7.1.1 says which is to be ignored. Who has no address yet only wants to hear that
    /// somebody else has it.
    pub fn solicitation(&mut self, attachment: &Attachment, link: &Link, ip: &Network) -> Option<Step> {
        const SOLICITATION: u8 = 135;
        if ip.family != Family::V6 || !ip.is_plain_icmp() {
            return None;
        }
        let Some(kind) = at::<2>(&self.frame, Family::V6.icmp()) else {
            return Some(Err(DropReason::Malformed));
        };
        if kind[0] != SOLICITATION {
            return None;
        }
        let sound = self.sound_message(ip).ok_or(DropReason::Malformed);
        let target = sound.and_then(|message| at(message, 8).map(Ip).ok_or(DropReason::Malformed));
        Some(target.and_then(|target| self.advertise(attachment, link, (ip.source, target))))
    }

    /// A solicitation's message, unless it is to be ignored: passed on by a router, of another code, with a wrong checksum, or with
    /// options that are not whole. Here also if it is longer than three units and six more of options.
    fn sound_message(&self, ip: &Network) -> Option<&[u8]> {
        const NEVER_FORWARDED: u8 = 255;
        const START: usize = ETHERNET + 40;
        let len = ip.total_len.checked_sub(40)?;
        let message = self.frame.get(START..START + usize::from(len))?;
        let mut covered = pseudo_header((ip.source, ip.destination), protocol::ICMP6, len);
        covered.extend(message);
        let mut options = message.get(24..)?;
        while let [_, n_units, ..] = options
            && *n_units > 0
        {
            options = options.get(usize::from(*n_units) * 8..)?;
        }
        let is_sound = message[1] == 0
            && self.frame[ETHERNET + 7] == NEVER_FORWARDED
            && checksum(&covered) == 0
            && options.is_empty()
            && message.len() <= 72;
        is_sound.then_some(message)
    }

    fn advertise(&mut self, attachment: &Attachment, link: &Link, (asker, target): (Ip, Ip)) -> Step {
        const SOLICITED_OVERRIDE: u8 = 0b0110_0000;
        /// Of type and length: the target's link-layer address, in eight bytes.
        const TARGET_OPTION: [u8; 2] = [2, 1];
        if asker == Ip::UNSPECIFIED {
            return Err(DropReason::NeighbourUnanswered);
        }
        if self.tables.name(attachment.vni, asker) != Some(attachment.address) {
            return Err(DropReason::SourceAddress);
        }
        let name = self.tables.name(attachment.vni, target).ok_or(DropReason::NeighbourUnanswered)?;
        let mac = self.mac_of_other(attachment, name)?;
        let mut message = vec![136, 0, 0, 0, SOLICITED_OVERRIDE, 0, 0, 0];
        message.extend([target.0.as_slice(), &TARGET_OPTION, &mac.0].concat());
        let mut covered = pseudo_header((target, asker), protocol::ICMP6, 32);
        covered.extend(&message);
        put(&mut message, 2, &checksum(&covered).to_be_bytes());
        let header = [0x60, 0, 0, 0, 0, 32, protocol::ICMP6, 255];
        self.set_macs(link.source, mac);
        self.frame.truncate(ETHERNET);
        self.frame.extend([header.as_slice(), &target.0, &asker.0, &message].concat());
        Ok(Verdict::Forward(Way::Out(self.packet.ifindex)))
    }

    /// The MAC of an address that is not the asker's own.
    fn mac_of_other(&self, attachment: &Attachment, address: Ip4) -> Result<MacAddr, DropReason> {
        let mac = self.mac_of(attachment, address).filter(|_| address != attachment.address);
        mac.ok_or(DropReason::NeighbourUnanswered)
    }

    fn mac_of(&self, attachment: &Attachment, address: Ip4) -> Option<MacAddr> {
        if address == attachment.gateway || self.is_vip(attachment, address) {
            return Some(ROUTER_MAC);
        }
        let key = EndpointKey { vni: attachment.vni, address };
        self.tables.wanted.endpoints.get(&key).map(|endpoint| endpoint.mac)
    }

    pub fn is_vip(&self, attachment: &Attachment, address: Ip4) -> bool {
        self.tables.wanted.vips.contains_key(&VipKey { vni: attachment.vni, address })
    }
}
