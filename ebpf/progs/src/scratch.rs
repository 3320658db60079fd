//! What a program has read of its packet, and the keys that it makes of that: on this CPU's own row of a map, because the
//! stack has no room for addresses of sixteen bytes. A packet's program does not leave its CPU before it ends, and none interrupts
//! another. Those of sockets may be preempted by each other, and keep nothing here.

use aya_ebpf::bindings::bpf_sock_tuple;
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;
use ebpf_abi::{
    Attachment, DropReason, Endpoint, FlowTuple, ForwardKey, FragmentKey, Ip, Ip4, ReplyFlow, ReplyKey,
    StandIn, TargetPort, VipFlowKey,
};
use ebpf_packet::ndp::Solicitation;
use ebpf_packet::vxlan::FRAME_HEADERS_LEN6;
use ebpf_packet::{Flow, IpHeader};

use crate::skb::Tunnel;
use crate::track::Translated;
use crate::tunnel::Through;
use crate::verdict::Verdict;

/// Each is written before it is read; all zero, as the kernel makes it, is a value of each.
#[repr(C)]
pub struct Scratch {
    attachment: Attachment,
    tunnel: Tunnel,
    through: Through,
    outer: [u8; FRAME_HEADERS_LEN6],
    header: IpHeader,
    solicitation: Solicitation,
    flow: Flow,
    tuple: FlowTuple,
    fragment: FragmentKey,
    forward_key: ForwardKey,
    reply_key: ReplyKey,
    reply: ReplyFlow,
    target: TargetPort,
    handed: Handed,
    sockets: bpf_sock_tuple,
    stand_in: StandIn,
    vip_key: VipFlowKey,
    vip_answers_key: VipFlowKey,
}

/// A client's packet, or an error about an answer to it, on its way to a backend of this node.
pub struct Handed {
    pub backend: Ip4,
    pub endpoint: Endpoint,
    pub translated: Translated,
    /// Who the client is to a task that listens on IPv4 alone.
    pub stand_in: Ip4,
}

#[btf_map(name = "scratch")]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

#[inline(always)]
fn row() -> Option<*mut Scratch> {
    SCRATCH.get_ptr_mut(0)
}

/// Keeps what is handed to a backend, member by member: as a whole it would be put together on the stack.
#[inline(always)]
pub fn hand(backend: Ip4, endpoint: &Endpoint, translated: &Translated) -> Result<(), DropReason> {
    let row = row().ok_or(DropReason::Unconfigured)?;
    // SAFETY: as in `keep`.
    let handed = unsafe { &mut (*row).handed };
    handed.backend = backend;
    handed.endpoint = *endpoint;
    handed.translated = *translated;
    Ok(())
}

/// Makes a function that keeps a value, and lends it until the next of its kind is kept.
macro_rules! keep {
    ($($name:ident: $type:ty;)+) => {
        $(
            #[inline(always)]
            pub fn $name(value: $type) -> Option<&'static mut $type> {
                let row = row()?;
                // SAFETY: the row belongs to this CPU and program, and each member to one kind of value.
                unsafe {
                    (*row).$name = value;
                    Some(&mut (*row).$name)
                }
            }
        )+
    };
}

keep! {
    attachment: Attachment;
    tunnel: Tunnel;
    header: IpHeader;
    flow: Flow;
    tuple: FlowTuple;
    fragment: FragmentKey;
    forward_key: ForwardKey;
    reply_key: ReplyKey;
    reply: ReplyFlow;
    target: TargetPort;
    stand_in: StandIn;
    vip_key: VipFlowKey;
    vip_answers_key: VipFlowKey;
}

/// Room for an IP header.
#[inline(always)]
pub fn room_for_header() -> Option<&'static mut IpHeader> {
    // SAFETY: as in `keep`.
    row().map(|row| unsafe { &mut (*row).header })
}

/// Room for a flow's addresses and ports.
#[inline(always)]
pub fn room_for_tuple() -> Option<&'static mut FlowTuple> {
    // SAFETY: as in `keep`.
    row().map(|row| unsafe { &mut (*row).tuple })
}

/// Room for a question for a neighbour.
#[inline(always)]
pub fn room_for_solicitation() -> Option<&'static mut Solicitation> {
    // SAFETY: as in `keep`.
    row().map(|row| unsafe { &mut (*row).solicitation })
}

/// Room for the headers of a tunnel over IPv6.
#[inline(always)]
pub fn room_for_outer() -> Option<&'static mut [u8; FRAME_HEADERS_LEN6]> {
    // SAFETY: as in `keep`.
    row().map(|row| unsafe { &mut (*row).outer })
}

/// What the first part of [`crate::task`] has kept for the others.
#[inline(always)]
pub fn of_task() -> Option<(&'static Attachment, &'static IpHeader)> {
    let row = row()?;
    // SAFETY: that part ends the program unless it has written both.
    unsafe { Some((&(*row).attachment, &(*row).header)) }
}

/// Room for a question for sockets.
#[inline(always)]
pub fn room_for_sockets() -> Option<&'static mut bpf_sock_tuple> {
    // SAFETY: as in `keep`.
    row().map(|row| unsafe { &mut (*row).sockets })
}

/// The packet's IP header, as [`crate::headers`] has read it.
#[inline(always)]
pub fn of_header() -> Option<&'static IpHeader> {
    // SAFETY: who asks for it comes after a part that has read it.
    row().map(|row| unsafe { &(*row).header })
}

/// What is handed to a backend, and its flow.
#[inline(always)]
pub fn of_handed() -> Option<(&'static mut Handed, &'static Flow)> {
    let row = row()?;
    // SAFETY: as in `of_header`; an error has no flow of its own, and its part doesn't look at it.
    unsafe { Some((&mut (*row).handed, &(*row).flow)) }
}

/// The packet's flow.
#[inline(always)]
pub fn of_flow() -> Option<&'static Flow> {
    let row = row()?;
    // SAFETY: as in `of_header`; without a flow there is the last one's.
    unsafe { Some(&(*row).flow) }
}

/// What the packet of a task answers to, the client, and the packet's flow.
#[inline(always)]
pub fn of_translated() -> Option<(&'static ReplyFlow, &'static Ip, &'static Flow)> {
    let row = row()?;
    // SAFETY: as in `of_handed`.
    unsafe { Some((&(*row).reply, &(*row).reply_key.client, &(*row).flow)) }
}

/// What the packet of a task answers to, kept where that was looked up.
#[inline(always)]
pub fn of_answer() -> Option<&'static ReplyFlow> {
    let row = row()?;
    // SAFETY: who asks for it has come by a part that has written it.
    unsafe { Some(&(*row).reply) }
}

/// The port that [`crate::ingress::deliver`] has kept: asked for again, it need not be held on the stack.
#[inline(always)]
pub fn of_target() -> Result<&'static TargetPort, DropReason> {
    let row = row().ok_or(DropReason::Unconfigured)?;
    // SAFETY: as in `of_answer`.
    unsafe { Ok(&(*row).target) }
}

/// Says which tunnel the packet is to go through; the verdict for that.
#[inline(always)]
pub fn aim(through: Through) -> Verdict {
    if let Some(row) = row() {
        // SAFETY: as in `keep`.
        unsafe { (*row).through = through };
    }
    Verdict::TUNNEL
}

/// What [`aim`] was told.
#[inline(always)]
pub fn aimed() -> Result<&'static Through, DropReason> {
    let row = row().ok_or(DropReason::Unconfigured)?;
    // SAFETY: as in `of_answer`.
    unsafe { Ok(&(*row).through) }
}

/// What the first part of [`crate::vxlan`] has kept for the next.
#[inline(always)]
pub fn of_tunnel() -> Option<&'static Tunnel> {
    let row = row()?;
    // SAFETY: that part ends the program unless it has written it.
    unsafe { Some(&(*row).tunnel) }
}
