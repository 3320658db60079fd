//! The BPF programs of the data plane. One entry point each; what they do is in the modules:
//!
//! - [`ingress`]: published ports, the same for XDP and tc: which backend, and handing a packet to a backend of this node.
//! - [`uplink`], [`vxlan`], [`task`], [`xdp`]: where packets come from.
//! - [`way_out`]: whose address has what tasks send past their networks.
//! - [`track`]: flows of this node's backends; [`gate`]: how many may begin.
//! - [`vips`]: virtual addresses, for packets that no socket hook has translated.
//! - [`route`]: where packets go; [`answer`]: where answers leave; [`tunnel`]: to another node, [`path`]: how long packets may
//!   be on the way there; [`fib`]: the kernel's routes.
//! - [`family`]: IPv6 clients of tasks that listen on IPv4 alone; [`stand_in`]: who they are to these; [`translate`]: their packets.
//! - [`errors`]: ICMP errors about their packets; [`fragments`]: packets that come in pieces.
//! - [`socket`]: connect, sendmsg, recvmsg and getpeername.
//! - [`sample`]: what is told of single packets; [`headers`] and [`scratch`]: what a
//!   program has read of its packet.
//! - [`verdict`]: outcome → verdict and counter; [`account`] and [`atomic`]: counting; [`skb`]: helpers as `Result`s; [`maps`]: the tables.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "the target has no atomic types, see `atomic`")]
#![expect(clippy::needless_pass_by_value, reason = "the entry points' macros hand contexts over by value")]
#![expect(
    clippy::inline_always,
    reason = "a BPF-to-BPF call can't pass what these functions pass, nor keep it known"
)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "helpers take and return C integers wider than the values in them; a checked conversion is a branch"
)]

mod account;
mod answer;
mod atomic;
mod errors;
mod family;
mod fib;
mod fragments;
mod gate;
mod headers;
mod ingress;
mod maps;
mod path;
mod route;
mod sample;
mod scratch;
mod skb;
mod socket;
mod stand_in;
mod task;
mod track;
mod translate;
mod tunnel;
mod uplink;
mod verdict;
mod vips;
mod vxlan;
mod way_out;
mod xdp;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::macros::{cgroup_sock_addr, classifier, xdp};
use aya_ebpf::programs::{SockAddrContext, TcContext, XdpContext};
use ebpf_abi::ProgramId;

use crate::account::Account;
use crate::path::Sender;
use crate::skb::Skb;
use crate::socket::{V4, V6, V6Datagram};

#[xdp(frags)]
pub fn mesh_xdp(context: XdpContext) -> u32 {
    of_xdp(context.ctx)
}

/// The same for generic XDP, without the word that it takes frames in several buffers. To give such a program its frames the
/// kernel copies them into buffers of another kind (since 6.9), and the copies have lost the length of their Ethernet header
/// (`mac_len`): tc, beneath, would look for all headers in the wrong place.
#[xdp]
pub fn mesh_xdp_skb(context: XdpContext) -> u32 {
    of_xdp(context.ctx)
}

/// One function for both: twice in the object, it would be cut up into functions whose types the kernel's BTF can't say.
#[inline(never)]
fn of_xdp(context: *mut xdp_md) -> u32 {
    let context = XdpContext::new(context);
    const PROGRAM: ProgramId = ProgramId::MeshXdp;
    let account = Account::receive(PROGRAM);
    sample::begin(PROGRAM, context.ctx);
    let action = verdict::xdp(&account, &xdp::run(&account, &context));
    sample::end(PROGRAM, context.ctx, sample::stage_of_xdp(action));
    action
}

/// Beside native XDP on a veth uplink its far end needs a program too; this one does nothing.
#[xdp(frags)]
pub fn mesh_xdp_pass(_context: XdpContext) -> u32 {
    aya_ebpf::bindings::xdp_action::XDP_PASS
}

#[classifier]
pub fn mesh_uplink(context: TcContext) -> i32 {
    tc(ProgramId::MeshUplink, &context, Sender::Other, uplink::run)
}

#[classifier]
pub fn mesh_vxlan(context: TcContext) -> i32 {
    tc(ProgramId::MeshVxlan, &context, Sender::Other, vxlan::run)
}

#[classifier]
pub fn mesh_vxlan_out(context: TcContext) -> i32 {
    tc(ProgramId::MeshVxlanOut, &context, Sender::Other, vxlan::run_out)
}

#[classifier]
pub fn mesh_task(context: TcContext) -> i32 {
    tc(ProgramId::MeshTask, &context, Sender::Task, task::run)
}

#[inline(always)]
fn tc(
    program: ProgramId,
    context: &TcContext,
    sender: Sender,
    run: impl FnOnce(&Account, &Skb) -> i32,
) -> i32 {
    let hook = context.skb.skb;
    sample::begin(program, hook);
    // In a block of its own: what follows may have the stack of what is in it.
    let action = {
        let (account, packet) = (Account::receive(program), Skb::new(context));
        verdict::tc(&account, &packet, run(&account, &packet), sender)
    };
    sample::end(program, hook, sample::stage_of_tc(action));
    action
}

#[cgroup_sock_addr(connect4)]
pub fn mesh_connect4(context: SockAddrContext) -> i32 {
    socket::connect::<V4>(ProgramId::MeshConnect4, &context)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn mesh_sendmsg4(context: SockAddrContext) -> i32 {
    socket::sendmsg::<V4>(ProgramId::MeshSendmsg4, &context)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn mesh_recvmsg4(context: SockAddrContext) -> i32 {
    socket::restore::<V4>(ProgramId::MeshRecvmsg4, &context)
}

#[cgroup_sock_addr(getpeername4)]
pub fn mesh_getpeername4(context: SockAddrContext) -> i32 {
    socket::restore::<V4>(ProgramId::MeshGetpeername4, &context)
}

#[cgroup_sock_addr(connect6)]
pub fn mesh_connect6(context: SockAddrContext) -> i32 {
    socket::connect::<V6>(ProgramId::MeshConnect6, &context)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn mesh_sendmsg6(context: SockAddrContext) -> i32 {
    socket::sendmsg::<V6Datagram>(ProgramId::MeshSendmsg6, &context)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn mesh_recvmsg6(context: SockAddrContext) -> i32 {
    socket::restore::<V6>(ProgramId::MeshRecvmsg6, &context)
}

#[cgroup_sock_addr(getpeername6)]
pub fn mesh_getpeername6(context: SockAddrContext) -> i32 {
    socket::restore::<V6>(ProgramId::MeshGetpeername6, &context)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel's helpers are for GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
