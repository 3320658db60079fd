//! Tells user space of single packets: one of so many, or those with a mark, each before and after a program. Switched off it
//! costs two reads of one row.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_tunnel_key, xdp_action, xdp_md};
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_skb_load_bytes, bpf_xdp_load_bytes};
use ebpf_abi::sample::{
    FlowEvent, N_HEAD_BYTES, STAGE_DROPPED, STAGE_FORWARDED, STAGE_PASSED, STAGE_RECEIVED, Sampling,
};
use ebpf_abi::{DropReason, Ip, ProgramId, TellingRow};
use ebpf_packet::vxlan::{OVERHEAD4, OVERHEAD6};
use ebpf_packet::{Version, flow, ip};

use crate::maps::{EVENTS, SAMPLING, TELLING};
use crate::skb;

/// The packet as its hook knows it.
pub trait Hooked: Copy {
    /// Copies `len` bytes, or none.
    ///
    /// # Safety
    /// There must be room for them.
    unsafe fn load(self, offset: u32, to: *mut c_void, len: u32) -> bool;
    fn len(self) -> u32;
    fn ifindex(self) -> u32;
    /// # Safety
    /// There must be room for a key.
    unsafe fn tunnel(self, to: *mut bpf_tunnel_key) -> Option<Ip>;
}

impl Hooked for *mut __sk_buff {
    #[inline(always)]
    unsafe fn load(self, offset: u32, to: *mut c_void, len: u32) -> bool {
        // SAFETY: the caller's.
        unsafe { bpf_skb_load_bytes(self.cast(), offset, to, len) == 0 }
    }

    #[inline(always)]
    fn len(self) -> u32 {
        // SAFETY: the context outlives the program.
        unsafe { (*self).len }
    }

    #[inline(always)]
    fn ifindex(self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self).ifindex }
    }

    #[inline(always)]
    unsafe fn tunnel(self, to: *mut bpf_tunnel_key) -> Option<Ip> {
        // SAFETY: the caller's.
        unsafe { skb::tunnel_sender(self, to) }
    }
}

impl Hooked for *mut xdp_md {
    #[inline(always)]
    unsafe fn load(self, offset: u32, to: *mut c_void, len: u32) -> bool {
        // SAFETY: the caller's.
        unsafe { bpf_xdp_load_bytes(self, offset, to, len) == 0 }
    }

    #[inline(always)]
    fn len(self) -> u32 {
        // SAFETY: the context outlives the program.
        unsafe { (*self).data_end - (*self).data }
    }

    #[inline(always)]
    fn ifindex(self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self).ingress_ifindex }
    }

    #[inline(always)]
    unsafe fn tunnel(self, _: *mut bpf_tunnel_key) -> Option<Ip> {
        None
    }
}

/// The packet as the program gets it.
#[inline(always)]
pub fn begin<H: Hooked>(program: ProgramId, hook: H) {
    if sampling().is_some() {
        choose(hook, what(program, STAGE_RECEIVED, 0));
    }
}

/// The packet as it leaves the program.
#[inline(always)]
pub fn end<H: Hooked>(program: ProgramId, hook: H, stage: u8) {
    if sampling().is_some() {
        finish(hook, what(program, stage, 0));
    }
}

#[inline(never)]
fn finish<H: Hooked>(hook: H, what: u32) {
    let Some(row) = row() else { return };
    let packet = core::mem::take(&mut row.packet);
    if packet != 0 {
        let reason = if (what >> 8) as u8 == STAGE_DROPPED { row.reason << 16 } else { 0 };
        tell(hook, what | reason, packet);
    }
}

/// Why the packet is dropped.
#[inline(never)]
pub fn note(reason: DropReason) {
    if sampling().is_some()
        && let Some(row) = row()
    {
        row.reason = reason.number();
    }
}

/// What a tc program's last word means.
#[inline(always)]
pub const fn stage_of_tc(action: i32) -> u8 {
    match action {
        TC_ACT_UNSPEC => STAGE_PASSED,
        TC_ACT_SHOT => STAGE_DROPPED,
        _ => STAGE_FORWARDED,
    }
}

/// As [`stage_of_tc`], for XDP.
#[inline(always)]
pub const fn stage_of_xdp(action: u32) -> u8 {
    match action {
        xdp_action::XDP_PASS => STAGE_PASSED,
        xdp_action::XDP_DROP => STAGE_DROPPED,
        _ => STAGE_FORWARDED,
    }
}

/// `None` while it is switched off.
#[inline(always)]
fn sampling() -> Option<&'static Sampling> {
    SAMPLING.get(0).filter(|sampling| sampling.is_on != 0)
}

#[inline(always)]
fn row() -> Option<&'static mut TellingRow> {
    // SAFETY: the row belongs to this CPU, which a program does not leave before it ends.
    TELLING.get_ptr_mut(0).map(|row| unsafe { &mut *row })
}

/// Remembers the packet's number if it is to be told of.
#[inline(never)]
fn choose<H: Hooked>(hook: H, what: u32) {
    let (Some(sampling), Some(row)) = (sampling(), row()) else { return };
    // SAFETY: plain helper calls.
    let (now, random) = unsafe { (bpf_ktime_get_ns(), bpf_get_prandom_u32()) };
    let is_sampled = sampling.every != 0 && random % sampling.every == 0;
    if now > sampling.until_ns || !(is_sampled || is_marked(hook, sampling)) {
        row.packet = 0;
        return;
    }
    row.packet = random | 1;
    tell(hook, what, random | 1);
}

/// By its source port, which no program changes unless another flow has it already. Of IPv4 without options, and IPv6 without
/// extensions.
#[inline(always)]
fn is_marked<H: Hooked>(hook: H, sampling: &Sampling) -> bool {
    sampling.marked_port.get() != 0
        && (has_mark(hook, sampling, 0)
            || has_mark(hook, sampling, OVERHEAD4 as u32)
            || has_mark(hook, sampling, OVERHEAD6 as u32))
}

#[inline(always)]
fn has_mark<H: Hooked>(hook: H, sampling: &Sampling, frame: u32) -> bool {
    const PROTOCOL_OFFSET4: usize = 9;
    const PROTOCOL_OFFSET6: usize = 6;
    let (mut start, mut port) = ([0_u8; PROTOCOL_OFFSET4 + 1], [0_u8; 2]);
    // SAFETY: there is room for what is asked for.
    if !unsafe { hook.load(frame + ip::OFFSET as u32, (&raw mut start).cast(), start.len() as u32) } {
        return false;
    }
    let (protocol, version) = if start[0] >> 4 == 6 {
        (start[PROTOCOL_OFFSET6], Version::V6)
    } else {
        (start[PROTOCOL_OFFSET4], Version::V4)
    };
    let port_offset = (ip::OFFSET + version.min_len() + flow::SOURCE_PORT_OFFSET) as u32;
    protocol == sampling.marked_protocol
        // SAFETY: as above.
        && unsafe { hook.load(frame + port_offset, (&raw mut port).cast(), 2) }
        && port == sampling.marked_port.0
}

#[inline(always)]
const fn what(program: ProgramId, stage: u8, reason: u32) -> u32 {
    program.number() | (stage as u32) << 8 | reason << 16
}

/// Program, stage and reason are one number.
#[inline(always)]
fn tell<H: Hooked>(hook: H, what: u32, packet: u32) {
    let Some(mut event) = EVENTS.reserve(0) else {
        if let Some(row) = row() {
            row.n_lost += 1;
        }
        return;
    };
    // SAFETY: all of the record is written before it is given away; the head has room for a tunnel key, and for its own bytes.
    unsafe {
        let event: *mut FlowEvent = event.as_mut_ptr();
        let head = (&raw mut (*event).head).cast::<c_void>();
        let key = head.cast::<bpf_tunnel_key>();
        let sender = hook.tunnel(key);
        (*event).vni = if sender.is_some() { (*key).tunnel_id } else { 0 };
        (*event).remote = sender.unwrap_or(Ip::UNSPECIFIED);
        (*event).at_ns = bpf_ktime_get_ns();
        (*event).packet = packet;
        (*event).ifindex = hook.ifindex();
        (*event).len = hook.len();
        (*event).program = what as u8;
        (*event).stage = (what >> 8) as u8;
        (*event).reason = (what >> 16) as u8;
        (*event).reserved = [0; 5];
        ptr::write_bytes(head.cast::<u64>(), 0, N_HEAD_BYTES / 8);
        let _ = hook.load(0, head, N_HEAD_BYTES as u32)
            || hook.load(0, head, 104)
            || hook.load(0, head, 92)
            || hook.load(0, head, 74)
            || hook.load(0, head, 62)
            || hook.load(0, head, 54)
            || hook.load(0, head, 42)
            || hook.load(0, head, 14);
    }
    event.submit(0);
}
