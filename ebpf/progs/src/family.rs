//! By which IP version a task gets the packets of clients that come by IPv6: by IPv6 if it listens to that, else by IPv4, if it
//! does to that. Asked when a flow begins, and as long as it isn't established: a task may begin to listen meanwhile.

use core::ffi::c_void;

use aya_ebpf::bindings::{bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1};
use aya_ebpf::helpers::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use ebpf_abi::flow::FLOW_AS_IPV4;
use ebpf_abi::{DropReason, Ip, Ip4, Port};
use ebpf_packet::{Flow, Version, ipv6};

use crate::account::Account;
use crate::scratch::{self, Handed};
use crate::skb::{self, Skb};
use crate::verdict::{self, Outcome, Verdict};
use crate::{errors, ingress};
use crate::{maps, stand_in, track, translate};

/// Gives a client's packet, or an error, to its task; any other action stays.
#[inline(always)]
pub fn finish(account: &Account, packet: &Skb, mut action: i32) -> i32 {
    if action == verdict::FAMILY {
        action = part_of_families(account, packet);
    }
    match action {
        verdict::HAND_OVER => part_of_deliveries(account, packet),
        verdict::TRANSLATE => part_of_packets(account, packet),
        verdict::HAND_OVER_ERROR => part_of_error_deliveries(account, packet),
        verdict::TRANSLATE_ERROR => part_of_errors(account, packet),
        other => other,
    }
}

#[inline(never)]
fn part_of_families(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &Some(decide(packet)))
}

#[inline(never)]
fn part_of_deliveries(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &Some(deliver(packet)))
}

#[inline(never)]
fn part_of_error_deliveries(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &Some(errors::hand_over(packet)))
}

#[inline(never)]
fn part_of_packets(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &Some(translate::client_packet(packet)))
}

#[inline(never)]
fn part_of_errors(account: &Account, packet: &Skb) -> i32 {
    verdict::part(account, &Some(translate::client_error(packet)))
}

#[inline(always)]
fn deliver(packet: &Skb) -> Outcome {
    let config = maps::config().ok_or(DropReason::Unconfigured)?;
    let (handed, flow) = scratch::of_handed().ok_or(DropReason::Unconfigured)?;
    ingress::rewrite(config, packet, flow, (handed.backend, &handed.endpoint), &handed.translated)?;
    Ok(skb::send_to_sandbox(handed.endpoint.ifindex))
}

#[inline(always)]
fn decide(packet: &Skb) -> Outcome {
    let (handed, flow) = scratch::of_handed().ok_or(DropReason::Unconfigured)?;
    let mut family = handed.translated.family;
    if handed.translated.is_new() {
        family = ask(packet, flow, handed).unwrap_or(family);
        track::settle(&flow.tuple, handed.backend, family);
    }
    if family != FLOW_AS_IPV4 {
        return Ok(Verdict::HAND_OVER);
    }
    handed.stand_in = stand_in::of(&flow.tuple.source, handed.translated.is_established());
    if handed.stand_in.is_unspecified() { Err(DropReason::Untranslatable) } else { Ok(Verdict::TRANSLATE) }
}

/// [`FLOW_AS_IPV4`] or 0 (IPv6); `None` if nobody listens, or that can't be known: no helper finds sockets of SCTP. A link
/// whose packets may not have the bytes that IPv6 wants has no address of it, whatever its task listens to.
#[inline(always)]
fn ask(packet: &Skb, flow: &Flow, handed: &Handed) -> Option<u8> {
    if flow.is_sctp() {
        return None;
    }
    let config = maps::config()?;
    let attachment = maps::attachment(handed.endpoint.ifindex)?;
    if attachment.mtu < ipv6::MIN_MTU {
        return Some(FLOW_AS_IPV4);
    }
    let sandbox = attachment.sandbox.checked_sub(1)?;
    let port = handed.translated.target_port;
    let task = maps::address(config.ingress_vni, handed.backend, Version::V6)?;
    let tuple = scratch::room_for_sockets()?;
    fill6(tuple, (flow.tuple.source, handed.translated.client_port), (task, port));
    if has_socket(packet, flow, (tuple, LEN6), sandbox) {
        return Some(0);
    }
    fill4(tuple, handed.translated.client_port, (handed.backend, port));
    has_socket(packet, flow, (tuple, LEN4), sandbox).then_some(FLOW_AS_IPV4)
}

const LEN4: u32 = 12;
const LEN6: u32 = 36;
const _: () = assert!(size_of::<bpf_sock_tuple__bindgen_ty_1>() == LEN6 as usize);

#[inline(always)]
fn fill6(tuple: &mut bpf_sock_tuple, source: (Ip, Port), destination: (Ip, Port)) {
    // SAFETY: of plain integers.
    let ipv6 = unsafe { &mut tuple.__bindgen_anon_1.ipv6 };
    (ipv6.saddr, ipv6.daddr) = (source.0.to_be_words(), destination.0.to_be_words());
    (ipv6.sport, ipv6.dport) = (source.1.to_be_u16(), destination.1.to_be_u16());
}

/// From nobody: a listening socket, and one that isn't connected, serve all clients.
#[inline(always)]
fn fill4(tuple: &mut bpf_sock_tuple, source: Port, destination: (Ip4, Port)) {
    // SAFETY: of plain integers.
    let ipv4 = unsafe { &mut tuple.__bindgen_anon_1.ipv4 };
    (ipv4.saddr, ipv4.daddr) = (0, destination.0.to_be_u32());
    (ipv4.sport, ipv4.dport) = (source.to_be_u16(), destination.1.to_be_u16());
}

/// A socket of the sandbox would take the flow's packets.
#[inline(always)]
fn has_socket(packet: &Skb, flow: &Flow, (tuple, len): (&mut bpf_sock_tuple, u32), sandbox: u32) -> bool {
    let (context, tuple): (_, *mut bpf_sock_tuple) = (packet.context(), tuple);
    // SAFETY: plain helper calls: the kernel reads the tuple, and a socket that was found is released at once.
    unsafe {
        let socket: *mut c_void = if flow.is_udp() {
            bpf_sk_lookup_udp(context, tuple, len, sandbox.into(), 0).cast()
        } else {
            bpf_skc_lookup_tcp(context, tuple, len, sandbox.into(), 0).cast()
        };
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket);
        true
    }
}
