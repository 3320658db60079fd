//! Flows of this node's backends: state, kept where the task is.
//!
//! The task sees the client's own address, and its own port unless another flow of that client (through another ingress
//! node) already has it at this task.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::bpf_get_prandom_u32;
use ebpf_abi::flow::{FLOW_ANSWERED, FLOW_DSR, FLOW_ESTABLISHED, FLOW_FIN_CLIENT, FLOW_FIN_TASK, FLOW_RESET};
use ebpf_abi::limits::SOURCE_PORT_TRIES;
use ebpf_abi::{DropReason, FlowTuple, ForwardFlow, ForwardKey, Ip4, Port, ReplyFlow, ReplyKey, TargetPort};
use ebpf_packet::Flow;

use crate::gate;
use crate::maps::{self, FLOWS, REPLIES};
use crate::{scratch, stand_in};

/// Linux's code for "file exists".
const EEXIST: i32 = 17;
/// Source ports are replaced by one of the upper half of all ports, away from services.
const FIRST_REPLACEMENT_PORT: u16 = 32_768;

/// What a client's packet becomes.
#[derive(Clone, Copy)]
pub struct Translated {
    pub target_port: Port,
    pub client_port: Port,
    /// As in the row.
    pub family: u8,
    /// [`IS_NEW`] and [`IS_ESTABLISHED`]: numbers can go between functions, where the verifier wants all bytes written.
    pub progress: u8,
}

/// The packet may begin a flow: the family isn't settled.
const IS_NEW: u8 = 1;
const IS_ESTABLISHED: u8 = 2;

impl Translated {
    #[inline(always)]
    pub const fn is_new(&self) -> bool {
        self.progress == IS_NEW
    }

    #[inline(always)]
    pub const fn is_established(&self) -> bool {
        self.progress == IS_ESTABLISHED
    }
}

/// The translation of a client's packet to `backend`, whose answers are to go this `way` from now on; `None` if the flow isn't
/// known there.
#[inline(always)]
pub fn known(flow: &Flow, backend: Ip4, way: u8) -> Option<Translated> {
    let key = &*scratch::forward_key(ForwardKey::new(&flow.tuple, backend))?;
    let row = FLOWS.get_ptr_mut(key)?;
    // SAFETY: the row stays in its place while this program runs; two CPUs that write it write the same.
    let row = unsafe { &mut *row };
    let tick = maps::tick();
    if row.last_seen != tick {
        row.last_seen = tick;
    }
    let ends = flow.is_first_syn() || flow.is_fin() || flow.is_reset();
    if ends || row.state != FLOW_ESTABLISHED || row.way != way {
        let client = (flow.tuple.source, row.client_port);
        let reply_key =
            &*scratch::reply_key(ReplyKey::new((backend, row.target_port), client, flow.tuple.protocol))?;
        if let Some(reply) = REPLIES.get_ptr_mut(reply_key) {
            // SAFETY: as above.
            let reply = unsafe { &mut *reply };
            if !is_of(reply, key) {
                // The flow was over and another one took its port: what the client sends now is neither's.
                let _ = FLOWS.remove(key);
                return None;
            }
            note(flow, row, reply);
            if row.way != way {
                row.way = way;
                reply.way = way;
            }
        }
    }
    let progress = if row.state == FLOW_ESTABLISHED {
        IS_ESTABLISHED
    } else {
        u8::from(flow.is_first_syn() || flow.is_udp()) * IS_NEW
    };
    let (target_port, client_port, family) = (row.target_port, row.client_port, row.family);
    Some(Translated { target_port, client_port, family, progress })
}

/// Writes by which version the task gets the packets of a flow.
#[inline(always)]
pub fn settle(tuple: &FlowTuple, backend: Ip4, family: u8) {
    if let Some(key) = scratch::forward_key(ForwardKey::new(tuple, backend))
        && let Some(row) = FLOWS.get_ptr_mut(&*key)
    {
        // SAFETY: as in `known`.
        let row = unsafe { &mut *row };
        if row.family != family {
            row.family = family;
        }
    }
}

/// As [`known`], for who only asks: no packet of the flow's own came.
#[inline(always)]
pub fn translation(tuple: &FlowTuple, backend: Ip4) -> Option<Translated> {
    // SAFETY: the row is copied at once.
    let row = unsafe { FLOWS.get(&*scratch::forward_key(ForwardKey::new(tuple, backend))?) }?;
    let (target_port, client_port, family) = (row.target_port, row.client_port, row.family);
    Some(Translated { target_port, client_port, family, progress: 0 })
}

/// The port that a connection began with, if it goes on.
#[inline(always)]
pub fn target(flow: &Flow, backend: Ip4) -> Option<TargetPort> {
    if !flow.goes_on() {
        return None;
    }
    // SAFETY: the row is copied at once.
    let row = unsafe { FLOWS.get(&*scratch::forward_key(ForwardKey::new(&flow.tuple, backend))?) }?;
    Some(TargetPort::new(row.target_port).with_dsr(row.way & FLOW_DSR != 0))
}

/// The flow that a packet of the task with this name answers to; its `closing` is as it was before this packet.
#[inline(always)]
pub fn reply(flow: &Flow, task: Ip4) -> Option<&'static ReplyFlow> {
    let tuple = &flow.tuple;
    let source = (task, tuple.source_port);
    let client = (stand_in::client(tuple.destination)?, tuple.destination_port);
    let key = &*scratch::reply_key(ReplyKey::new(source, client, tuple.protocol))?;
    let row = REPLIES.get_ptr_mut(key)?;
    // SAFETY: as in `known`.
    let row = unsafe { &mut *row };
    let found = &*scratch::reply(*row)?;
    let tick = maps::tick();
    if row.last_seen != tick {
        row.last_seen = tick;
    }
    if flow.is_fin() || flow.is_reset() {
        row.closing |= closing(flow, FLOW_FIN_TASK, FLOW_RESET);
    }
    if row.answered != FLOW_ANSWERED && !flow.is_reset() {
        row.answered = FLOW_ANSWERED;
    }
    Some(found)
}

/// As [`reply`], for the packet that an ICMP error of the task complains of.
#[inline(always)]
pub fn reply_to_embedded(key: ReplyKey) -> Option<&'static ReplyFlow> {
    let key = &*scratch::reply_key(key)?;
    // SAFETY: the row is copied at once.
    Some(scratch::reply(*unsafe { REPLIES.get(key) }?)?)
}

/// Remembers that a connection begins anew, ends, or that its client went on after the task's answer. Nothing that a client
/// sends by itself makes a flow established, or ends one that is: its address may be another's, and the task takes a RST only
/// where its window is (RFC 5961 section 3.2), which nobody looks for here. So that counts as the client's FIN, and the port
/// stays the flow's.
#[inline(always)]
fn note(flow: &Flow, row: &mut ForwardFlow, reply: &mut ReplyFlow) {
    if flow.is_first_syn() {
        if reply.is_closed() {
            row.state = 0;
            reply.answered = 0;
        }
        reply.closing = 0;
    } else if flow.is_fin() || flow.is_reset() {
        let reset = if row.state == FLOW_ESTABLISHED { FLOW_FIN_CLIENT } else { FLOW_RESET };
        reply.closing |= closing(flow, FLOW_FIN_CLIENT, reset);
    } else if reply.answered == FLOW_ANSWERED {
        row.state = FLOW_ESTABLISHED;
    }
}

/// What a FIN and a RST of the packet's sender mean.
#[inline(always)]
pub fn closing(flow: &Flow, fin: u8, reset: u8) -> u8 {
    (if flow.is_fin() { fin } else { 0 }) | (if flow.is_reset() { reset } else { 0 })
}

/// The first packet of a flow to `backend`: finds a source port that is free at the task, and writes both rows.
#[inline(always)]
pub fn open(
    flow: &Flow,
    backend: Ip4,
    &TargetPort { target, way, .. }: &TargetPort,
) -> Result<Translated, DropReason> {
    let tick = maps::tick();
    let tuple = &flow.tuple;
    let key = &*scratch::forward_key(ForwardKey::new(tuple, backend)).ok_or(DropReason::Unconfigured)?;
    let row = ReplyFlow::new((tuple.destination, tuple.destination_port), tuple.source_port, tick);
    let row = scratch::reply(row).ok_or(DropReason::Unconfigured)?;
    row.way = way;
    let reply_key = ReplyKey::new((backend, target), (tuple.source, tuple.source_port), tuple.protocol);
    let reply_key = scratch::reply_key(reply_key).ok_or(DropReason::Unconfigured)?;
    let mut tries = 0;
    while !claim(reply_key, row)? {
        tries += 1;
        if tries == SOURCE_PORT_TRIES {
            return Err(DropReason::SourcePortsExhausted);
        }
        reply_key.client_port = random_port();
    }
    let mut forward = ForwardFlow::new(target, reply_key.client_port, tick);
    forward.way = way;
    let client_port = reply_key.client_port;
    let own = Translated { target_port: target, client_port, family: 0, progress: IS_NEW };
    match FLOWS.insert(key, forward, BPF_NOEXIST.into()) {
        Ok(()) => {
            gate::line_up(key);
            Ok(own)
        }
        Err(code) if code == -EEXIST => Ok(yield_to_other(key, reply_key, own)),
        Err(_) => {
            let _ = REPLIES.remove(&*reply_key);
            Err(DropReason::FlowTableFull)
        }
    }
}

/// Removes both rows of a flow unless it is established and not over; true if it was half-open. `reply_key` is room for the other
/// key.
#[inline(always)]
pub fn forget_unless_open(key: &ForwardKey, reply_key: &mut ReplyKey) -> bool {
    // SAFETY: the row stays in its place while this program runs.
    let Some(row) = (unsafe { FLOWS.get(key) }) else { return false };
    let is_half_open = row.state != FLOW_ESTABLISHED;
    *reply_key = ReplyKey::new((key.endpoint, row.target_port), (key.client, row.client_port), key.protocol);
    // Another flow may have taken the reply row over.
    // SAFETY: as above.
    let reply = unsafe { REPLIES.get(&*reply_key) }.filter(|reply| is_of(reply, key));
    if !is_half_open && reply.is_some_and(|reply| !reply.is_closed()) {
        return false;
    }
    let _ = FLOWS.remove(key);
    if reply.is_some() {
        let _ = REPLIES.remove(&*reply_key);
    }
    is_half_open
}

/// The reply row is the one of this flow, which has the same client, backend and protocol.
#[inline(always)]
fn is_of(reply: &ReplyFlow, key: &ForwardKey) -> bool {
    (reply.service, reply.service_port, reply.client_port) == (key.service, key.service_port, key.client_port)
}

/// Another CPU has opened the flow meanwhile: its translation holds, and a reply row that only this one made goes.
#[inline(always)]
fn yield_to_other(key: &ForwardKey, own_key: &ReplyKey, own: Translated) -> Translated {
    // SAFETY: the row is copied at once.
    let Some(other) = unsafe { FLOWS.get(key) }.copied() else { return own };
    if other.target_port != own.target_port || other.client_port != own.client_port {
        let _ = REPLIES.remove(own_key);
    }
    Translated { target_port: other.target_port, client_port: other.client_port, family: other.family, ..own }
}

/// Takes a reply key for a flow: false if another flow that lives has it.
#[inline(always)]
fn claim(key: &ReplyKey, row: &ReplyFlow) -> Result<bool, DropReason> {
    match REPLIES.insert(key, row, BPF_NOEXIST.into()) {
        Ok(()) => return Ok(true),
        Err(code) if code != -EEXIST => return Err(DropReason::FlowTableFull),
        Err(_) => {}
    }
    // SAFETY: the row stays in its place while this program runs.
    let Some(other) = (unsafe { REPLIES.get(key) }) else { return Ok(false) };
    if !other.is_same_flow(row) && !other.is_closed() {
        return Ok(false);
    }
    REPLIES.insert(key, row, BPF_ANY.into()).map_err(|_| DropReason::FlowTableFull)?;
    Ok(true)
}

#[inline(always)]
fn random_port() -> Port {
    // SAFETY: a plain helper call.
    let random = unsafe { bpf_get_prandom_u32() } as u16;
    Port::new(FIRST_REPLACEMENT_PORT | random)
}
