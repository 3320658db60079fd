//! What a task sends by its way out, the leg at the gateway bridge, which is the kernel's own: nothing passes that isn't from the
//! address that the leg has there, and no claim to another's. So a task of internal networks whose leg is for its host ports
//! gets no further with another address, and takes no other task's packets.

use ebpf_abi::{Attachment, DropReason, Ip};
use ebpf_packet::ip::Version;
use ebpf_packet::ndp::Message;
use ebpf_packet::{arp, ethernet};

use crate::account::Account;
use crate::skb::Skb;
use crate::verdict::{self, Outcome, Verdict};
use crate::{headers, maps, scratch};

/// `None` leaves a packet, kept by [`scratch`], to the others. Its MAC is the leg's own.
#[inline(always)]
pub fn first(
    packet: &Skb,
    attachment: &Attachment,
    ether_type: [u8; 2],
) -> Result<Option<Verdict>, DropReason> {
    if ether_type == ethernet::TYPE_ARP {
        return check_arp(packet, attachment).map(Some);
    }
    let version = Version::of(ether_type).ok_or(DropReason::NotIp)?;
    headers::ip(packet, version).ok_or(DropReason::Malformed)?;
    Ok(None)
}

/// The turn of what answers no client.
#[inline(never)]
pub fn part(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &Some(check(packet)))
}

#[inline(always)]
fn check_arp(packet: &Skb, attachment: &Attachment) -> Outcome {
    let sender = arp::sender(packet).map_err(|_| DropReason::Malformed)?;
    let (mac, address) = sender.ok_or(DropReason::SourceAddress)?;
    let is_own = mac == attachment.mac && attachment.mac.endpoint() == Some(address);
    if is_own { Ok(Verdict::Pass) } else { Err(DropReason::SourceAddress) }
}

#[inline(always)]
fn check(packet: &Skb) -> Outcome {
    let (attachment, ip) = scratch::of_task().ok_or(DropReason::Unconfigured)?;
    if ip.version == Version::V4 {
        return if is_given(attachment, ip.source) {
            Ok(Verdict::Pass)
        } else {
            Err(DropReason::SourceAddress)
        };
    }
    let message = Message::of(packet, ip).map_err(|_| DropReason::Malformed)?;
    let claimed = message.claimed(packet, ip.source).map_err(|_| DropReason::Malformed)?;
    if let Some(address) = claimed
        && !is_given(attachment, address)
        && !is_link_local(attachment, address)
    {
        return Err(DropReason::SourceAddress);
    }
    // Without an address of the bridge's prefix there is this to say, to the link alone.
    let is_of_link =
        message.is_of_link() && (ip.source.is_unspecified() || is_link_local(attachment, ip.source));
    if is_of_link || is_given(attachment, ip.source) {
        Ok(Verdict::Pass)
    } else {
        Err(DropReason::SourceAddress)
    }
}

/// The address behind the bridge, of either family.
#[inline(always)]
fn is_given(attachment: &Attachment, address: Ip) -> bool {
    match (maps::name(attachment.vni, address), attachment.mac.endpoint()) {
        (Some(name), Some(own)) => name == own,
        _ => false,
    }
}

#[inline(always)]
fn is_link_local(attachment: &Attachment, address: Ip) -> bool {
    address == attachment.mac.link_local()
}
