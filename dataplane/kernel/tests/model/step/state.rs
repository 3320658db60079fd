//! Flows of this node's backends: who they are to the task, and when they are over.

use ebpf_abi::flow::{FLOW_ANSWERED, FLOW_DSR, FLOW_ESTABLISHED, FLOW_FIN_CLIENT, FLOW_FIN_TASK, FLOW_RESET};
use ebpf_abi::limits::SOURCE_PORT_TRIES;
use ebpf_abi::{DropReason, FlowTuple, ForwardFlow, ForwardKey, Ip4, Port, ReplyFlow, ReplyKey, TargetPort};

use crate::frame::{FIN, RST, Segment};
use crate::kernel::HALF_OPEN_FLOWS;
use crate::tables::Tables;

/// What the task sees: its own port, and the client's.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    pub target: Port,
    pub client: Port,
    /// As in the row.
    pub family: u8,
    /// The packet may begin a flow.
    pub is_new: bool,
    pub is_established: bool,
}

impl Tables {
    /// How a flow that a backend knows is translated.
    pub fn known_flow(&self, tuple: &FlowTuple, backend: Ip4) -> Option<Seen> {
        let row = self.written.flows.get(&ForwardKey::new(tuple, backend))?;
        let (target, client, family) = (row.target_port, row.client_port, row.family);
        Some(Seen { target, client, family, is_new: false, is_established: false })
    }

    /// The same, for a packet of the flow: remembers that it came, and which way answers go now.
    pub fn client_sends(&mut self, segment: &Segment, backend: Ip4, way: u8) -> Option<Seen> {
        let seen = self.client_goes_on(segment, backend, way)?;
        let row = self.written.flows.get(&ForwardKey::new(&segment.tuple, backend))?;
        let is_established = row.state == FLOW_ESTABLISHED;
        let is_new = !is_established && (segment.begins() || segment.is_datagram());
        Some(Seen { is_new, is_established, ..seen })
    }

    fn client_goes_on(&mut self, segment: &Segment, backend: Ip4, way: u8) -> Option<Seen> {
        let tuple = &segment.tuple;
        let seen = self.known_flow(tuple, backend)?;
        let key = ReplyKey::new((backend, seen.target), (tuple.source, seen.client), tuple.protocol);
        let forward = ForwardKey::new(tuple, backend);
        let row = self.written.flows.get_mut(&forward)?;
        row.last_seen = self.wanted.tick;
        let Some(reply) = self.written.replies.get_mut(&key) else { return Some(seen) };
        let ends = segment.flags & (FIN | RST) != 0;
        // What goes on as ever changes nothing, and doesn't look.
        if !ends && !segment.begins() && row.state == FLOW_ESTABLISHED && row.way == way {
            return Some(seen);
        }
        if key.forward_key(reply) != forward {
            // The flow was over, and another took its port over.
            self.written.flows.remove(&forward);
            return None;
        }
        (row.way, reply.way) = (way, way);
        if segment.begins() {
            if is_over(reply) {
                row.state = 0;
                reply.answered = 0;
            }
            reply.closing = 0;
        } else if ends {
            // The task may not believe a RST.
            let reset = if row.state == FLOW_ESTABLISHED { FLOW_FIN_CLIENT } else { FLOW_RESET };
            reply.closing |= ending(segment, FLOW_FIN_CLIENT, reset);
        } else if reply.answered == FLOW_ANSWERED {
            row.state = FLOW_ESTABLISHED;
        }
        Some(seen)
    }

    /// The port that a connection has which goes on at a backend that no longer publishes it.
    pub fn target_of_old(&self, segment: &Segment, backend: Ip4) -> Option<TargetPort> {
        if segment.begins() || segment.is_datagram() {
            return None;
        }
        let row = self.written.flows.get(&ForwardKey::new(&segment.tuple, backend))?;
        Some(TargetPort::new(row.target_port).with_dsr(row.way & FLOW_DSR != 0))
    }

    /// The first packet of a flow that a backend gets. The client keeps its port unless another flow that lives has it at
    /// this task.
    pub fn flow_begins(
        &mut self,
        segment: &Segment,
        backend: Ip4,
        TargetPort { target, way, .. }: TargetPort,
    ) -> Result<Seen, DropReason> {
        let (tuple, tick) = (&segment.tuple, self.wanted.tick);
        let mut reply = ReplyFlow::new((tuple.destination, tuple.destination_port), tuple.source_port, tick);
        reply.way = way;
        let key = |client| ReplyKey::new((backend, target), (tuple.source, client), tuple.protocol);
        let mut client = tuple.source_port;
        let mut tries = 1;
        while !self.claim(key(client), reply)? {
            if tries == SOURCE_PORT_TRIES {
                return Err(DropReason::SourcePortsExhausted);
            }
            tries += 1;
            client = Port::new(u16::try_from(self.next_random() % (1 << 15)).unwrap() + (1 << 15));
        }
        if self.written.flows_are_full() {
            self.written.replies.remove(&key(client));
            return Err(DropReason::FlowTableFull);
        }
        let mut forward = ForwardFlow::new(target, client, tick);
        forward.way = way;
        self.written.flows.insert(ForwardKey::new(tuple, backend), forward);
        self.line_up(ForwardKey::new(tuple, backend));
        Ok(Seen { target, client, family: 0, is_new: true, is_established: false })
    }

    /// A flow that begins; the oldest of a full line goes, and is forgotten unless it is established and goes on.
    fn line_up(&mut self, key: ForwardKey) {
        if self.written.half_open.len() >= HALF_OPEN_FLOWS as usize
            && let Some(oldest) = self.written.half_open.pop_front()
        {
            self.forget_unless_open(&oldest);
        }
        self.written.half_open.push_back(key);
    }

    fn forget_unless_open(&mut self, key: &ForwardKey) {
        let written = &mut self.written;
        let Some(row) = written.flows.get(key).copied() else { return };
        let reply =
            ReplyKey::new((key.endpoint, row.target_port), (key.client, row.client_port), key.protocol);
        let own = written.replies.get(&reply).filter(|flow| reply.forward_key(flow) == *key);
        let is_half_open = row.state != FLOW_ESTABLISHED;
        if !is_half_open && own.is_some_and(|own| !is_over(own)) {
            return;
        }
        if own.is_some() {
            written.replies.remove(&reply);
        }
        written.flows.remove(key);
        written.gate.n_displaced += u64::from(is_half_open);
    }

    /// Takes a reply key that is free, or whose flow is over, or this one.
    fn claim(&mut self, key: ReplyKey, row: ReplyFlow) -> Result<bool, DropReason> {
        match self.written.replies.get(&key) {
            Some(other) => {
                let is_same = (other.service, other.service_port, other.client_port)
                    == (row.service, row.service_port, row.client_port);
                if !is_same && !is_over(other) {
                    return Ok(false);
                }
            }
            None if self.written.replies_are_full() => return Err(DropReason::FlowTableFull),
            None => {}
        }
        self.written.replies.insert(key, row);
        Ok(true)
    }

    /// The flow that a segment of the task with this name answers, if any; remembers that it did.
    pub fn task_answers(&mut self, segment: &Segment, task: Ip4) -> Option<ReplyFlow> {
        let tuple = &segment.tuple;
        let client = (self.meant(tuple.destination)?, tuple.destination_port);
        let task = (task, tuple.source_port);
        let row = self.written.replies.get_mut(&ReplyKey::new(task, client, tuple.protocol))?;
        let found = *row;
        row.last_seen = self.wanted.tick;
        row.closing |= ending(segment, FLOW_FIN_TASK, FLOW_RESET);
        if segment.flags & RST == 0 {
            row.answered = FLOW_ANSWERED;
        }
        Some(found)
    }
}

fn ending(segment: &Segment, fin: u8, reset: u8) -> u8 {
    let fin = if segment.flags & FIN != 0 { fin } else { 0 };
    let reset = if segment.flags & RST != 0 { reset } else { 0 };
    fin | reset
}

/// Both sides have sent a FIN, or one a RST.
fn is_over(reply: &ReplyFlow) -> bool {
    reply.closing & FLOW_RESET != 0
        || (reply.closing & FLOW_FIN_CLIENT != 0 && reply.closing & FLOW_FIN_TASK != 0)
}
