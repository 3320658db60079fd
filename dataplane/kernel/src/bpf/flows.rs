//! Collecting dead flows. The programs only ever add; a flow goes when its task is gone, when both sides have closed it,
//! or when it was silent for longer than its kind may be.

use std::collections::{BTreeMap, BTreeSet};

use ebpf_abi::flow::{FLOW_AS_IPV4, FLOW_ESTABLISHED, is_closed};
use ebpf_abi::limits::MAX_FLOWS;
use ebpf_abi::stand_in::RESERVED_SECS;
use ebpf_abi::{Endpoint, ForwardFlow, ForwardKey, Ip, Ip4, ReplyFlow, ReplyKey, StandIn, protocol};

use super::table::TableError;
use super::tables::Tables;

/// For how long flows may be silent, seconds.
pub(super) struct Limits {
    /// Connections that are over.
    closed: u32,
    /// Connections whose client did not go on after the task's answer.
    half_open: u32,
    /// Connections that one side has closed, or that only the client says are cut off.
    half_closed: u32,
    /// Datagrams likewise: one question, or one and its answer.
    pub(super) single_datagram: u32,
}

/// Closed flows stay for late segments, which come within a few round trips; a half-open one for as long as Linux repeats a
/// SYN-ACK (63 s), and an SCTP cookie lives (60 s); single datagrams for as long as Linux's connection tracking keeps what is no stream.
/// A half-closed one whose other side has vanished never gets its second FIN. Linux's connection tracking gives it 120 s
/// (`nf_conntrack_tcp_timeout_fin_wait`; 60 s in `close_wait`), IPVS 120 s and 60 s; a download whose client has closed its side may
/// be silent for longer than that, and each of its packets begins the hour anew.
pub(super) const USUAL: Limits = Limits { closed: 10, half_open: 64, half_closed: 3600, single_datagram: 30 };
/// When there is hardly any room: what a slow but live client needs, and half-closed ones for as long as Linux's connection tracking
/// ever keeps them.
pub(super) const CROWDED: Limits = Limits { closed: 2, half_open: 8, half_closed: 120, single_datagram: 5 };
/// More flows than seven eighths of the table are a crowd.
const CROWD: usize = MAX_FLOWS as usize / 8 * 7;
/// An open connection may be silent for as long as Linux's connection tracking lets it be: five days. An association has
/// heartbeats, 30 s apart unless its user says otherwise (RFC 9260 section 16): one whose client has vanished ends by the
/// ABORT that the task sends after a few of them, hence needs no limit of its own, which would be one for that user.
const ESTABLISHED_SECS: u32 = 5 * 24 * 3600;
/// Datagrams have no end: as long as Linux's connection tracking keeps a two-way stream.
const DATAGRAM_SECS: u32 = 180;

/// What a sweep has done.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct FlowSweep {
    pub n_kept: usize,
    pub n_removed: usize,
}

/// What one pass over the flow tables found.
pub struct DeadFlows {
    /// As they were then.
    replies: Vec<(ReplyKey, ReplyFlow)>,
    n_kept: usize,
}

/// Why a sweep could not be done.
pub type SweepError = TableError;

impl Tables {
    /// Removes dead flows. To be called every few seconds; costs one pass over the flow tables, and another with shorter
    /// limits if they are nearly full.
    pub fn sweep_flows(&mut self) -> Result<FlowSweep, SweepError> {
        let now = self.tick.get()?;
        let local = self.local_endpoints()?;
        let dead = self.find_dead(&local, now, &USUAL)?;
        let mut sweep = self.remove_dead(&dead)?;
        if sweep.n_kept > CROWD {
            let dead = self.find_dead(&local, now, &CROWDED)?;
            let crowded = self.remove_dead(&dead)?;
            sweep = FlowSweep { n_removed: sweep.n_removed + crowded.n_removed, ..crowded };
        }
        self.remove_halves(now)?;
        self.remove_stand_ins(now)?;
        Ok(sweep)
    }

    /// The first half of a sweep: the flows that are dead by the usual limits.
    pub fn dead_flows(&self) -> Result<DeadFlows, SweepError> {
        self.find_dead(&self.local_endpoints()?, self.tick.get()?, &USUAL)
    }

    /// Addresses in the ingress network.
    fn local_endpoints(&self) -> Result<BTreeSet<Ip4>, SweepError> {
        let vni = self.config.get()?.ingress_vni;
        let rows = self.endpoints.rows()?;
        let here = rows.into_iter().filter(|(key, row)| key.vni == vni && Endpoint::is_local(row));
        Ok(here.map(|(key, _)| key.address).collect())
    }

    fn find_dead(&self, local: &BTreeSet<Ip4>, now: u32, limits: &Limits) -> Result<DeadFlows, SweepError> {
        let (flows, mut replies, mut n_kept) = (&self.flows, Vec::new(), 0);
        self.replies.visit(|key: ReplyKey, reply: ReplyFlow| {
            let forward_key = key.forward_key(&reply);
            let is_fresh = age(now, reply.last_seen) <= limits.shortest();
            let lives = local.contains(&key.endpoint)
                && (is_fresh || !is_expired(&key, &reply, flows.get(&forward_key)?.as_ref(), now, limits));
            if lives {
                n_kept += 1;
            } else {
                replies.push((key, reply));
            }
            Ok(())
        })?;
        Ok(DeadFlows { replies, n_kept })
    }

    /// The second half of a sweep. A pass over a full table takes seconds: a flow that has come to life again since then, or
    /// whose port another flow has now, is left alone.
    pub fn remove_dead(&mut self, dead: &DeadFlows) -> Result<FlowSweep, SweepError> {
        let mut n_removed = 0;
        for (key, reply) in &dead.replies {
            if self.replies.get(key)?.as_ref() == Some(reply) {
                // The forward row first: a packet in between makes both anew, and the next one those that go then.
                self.flows.remove(&key.forward_key(reply))?;
                self.replies.remove(key)?;
                self.flows.remove(&key.forward_key(reply))?;
                n_removed += 1;
            }
        }
        Ok(FlowSweep { n_kept: dead.n_kept, n_removed })
    }

    /// Forward rows whose reply row another flow has taken over.
    fn remove_halves(&mut self, now: u32) -> Result<(), SweepError> {
        let (replies, mut halves) = (&self.replies, Vec::new());
        self.flows.visit(|key: ForwardKey, forward: ForwardFlow| {
            // A row of this very second may be about to get its reply row.
            if age(now, forward.last_seen) > 1 {
                let client = (key.client, forward.client_port);
                let reply_key = ReplyKey::new((key.endpoint, forward.target_port), client, key.protocol);
                if replies.get(&reply_key)?.is_none_or(|reply| reply_key.forward_key(&reply) != key) {
                    halves.push((key, forward));
                }
            }
            Ok(())
        })?;
        for (key, forward) in &halves {
            if self.flows.get(key)?.as_ref() == Some(forward) {
                self.flows.remove(key)?;
            }
        }
        Ok(())
    }

    /// Addresses that stand for clients without any flow that needs them. One that was seen lately may be about to get its flow.
    fn remove_stand_ins(&mut self, now: u32) -> Result<(), SweepError> {
        let mut silent: BTreeMap<Ip, (Ip4, StandIn)> = BTreeMap::new();
        self.stand_ins.visit(|address: Ip4, row: StandIn| {
            if age(now, row.last_seen) > RESERVED_SECS {
                silent.insert(row.client, (address, row));
            }
            Ok(())
        })?;
        if silent.is_empty() {
            return Ok(());
        }
        self.flows.visit(|key: ForwardKey, forward: ForwardFlow| {
            if forward.family == FLOW_AS_IPV4 {
                silent.remove(&key.client);
            }
            Ok(())
        })?;
        for (address, row) in silent.values() {
            if self.stand_ins.get(address)?.as_ref() == Some(row) {
                self.stand_ins.remove(address)?;
            }
        }
        Ok(())
    }
}

impl Limits {
    fn shortest(&self) -> u32 {
        self.closed.min(self.half_open).min(self.half_closed).min(self.single_datagram)
    }

    /// For how long a flow may be silent, seconds. `closing` is what both directions have seen.
    pub(super) fn of(&self, protocol: u8, closing: u8, is_established: bool) -> u32 {
        match (protocol == protocol::UDP, is_established) {
            (true, true) => DATAGRAM_SECS,
            (true, false) => self.single_datagram,
            (false, _) if is_closed(closing) => self.closed,
            (false, true) if closing != 0 => self.half_closed,
            (false, true) => ESTABLISHED_SECS,
            (false, false) => self.half_open,
        }
    }
}

/// Silent for longer than a flow of its kind may be.
fn is_expired(
    key: &ReplyKey,
    reply: &ReplyFlow,
    forward: Option<&ForwardFlow>,
    now: u32,
    limits: &Limits,
) -> bool {
    let idle_secs = forward.map_or(age(now, reply.last_seen), |forward| {
        age(now, forward.last_seen).min(age(now, reply.last_seen))
    });
    let is_established = forward.is_some_and(|forward| forward.state & FLOW_ESTABLISHED != 0);
    idle_secs > limits.of(key.protocol, reply.closing, is_established)
}

/// Seconds since `then`. A tick ahead of ours (the daemon counts from the pinned tick on, so this is a race of one) is
/// now.
pub(super) fn age(now: u32, then: u32) -> u32 {
    now.saturating_sub(then)
}

#[cfg(test)]
mod tests {
    use ebpf_abi::flow::{FLOW_FIN_CLIENT, FLOW_FIN_TASK, FLOW_RESET};
    use ebpf_abi::{Ip4, Port};

    use super::*;

    fn flow(protocol: u8, closing: u8, state: u8) -> (ReplyKey, ReplyFlow, ForwardFlow) {
        let client = (Ip4([198, 18, 0, 100]), Port::new(40_000));
        let key = ReplyKey::new((Ip4([10, 0, 0, 5]), Port::new(80)), client, protocol);
        let mut reply = ReplyFlow::new((Ip4([198, 18, 0, 11]), Port::new(8080)), client.1, 1000);
        reply.closing = closing;
        let mut forward = ForwardFlow::new(Port::new(80), client.1, 1000);
        forward.state = state;
        (key, reply, forward)
    }

    fn lives_secs(protocol: u8, closing: u8, state: u8, limits: &Limits) -> u32 {
        let (key, reply, forward) = flow(protocol, closing, state);
        let is_dead = |idle: u32| is_expired(&key, &reply, Some(&forward), 1000 + idle, limits);
        (0..=ESTABLISHED_SECS).find(|secs| is_dead(secs + 1)).expect("all flows end")
    }

    #[test]
    fn each_kind_has_its_limit() {
        const BOTH_FINS: u8 = FLOW_FIN_CLIENT | FLOW_FIN_TASK;
        for (protocol, closing, state, usual, crowded) in [
            (protocol::TCP, 0, 0, 64, 8),
            (protocol::TCP, 0, FLOW_ESTABLISHED, ESTABLISHED_SECS, ESTABLISHED_SECS),
            (protocol::TCP, FLOW_FIN_CLIENT, FLOW_ESTABLISHED, 3600, 120),
            (protocol::TCP, FLOW_FIN_TASK, FLOW_ESTABLISHED, 3600, 120),
            (protocol::TCP, FLOW_FIN_TASK, 0, 64, 8),
            (protocol::TCP, BOTH_FINS, FLOW_ESTABLISHED, 10, 2),
            (protocol::TCP, FLOW_RESET, FLOW_ESTABLISHED, 10, 2),
            (protocol::TCP, FLOW_RESET, 0, 10, 2),
            (protocol::SCTP, 0, 0, 64, 8),
            (protocol::SCTP, 0, FLOW_ESTABLISHED, ESTABLISHED_SECS, ESTABLISHED_SECS),
            (protocol::SCTP, FLOW_FIN_TASK, FLOW_ESTABLISHED, 3600, 120),
            (protocol::SCTP, BOTH_FINS, FLOW_ESTABLISHED, 10, 2),
            (protocol::SCTP, FLOW_RESET, FLOW_ESTABLISHED, 10, 2),
            (protocol::UDP, 0, FLOW_ESTABLISHED, 180, 180),
            (protocol::UDP, 0, 0, 30, 5),
        ] {
            let lives = [&USUAL, &CROWDED].map(|limits| lives_secs(protocol, closing, state, limits));
            assert_eq!(lives, [usual, crowded], "protocol {protocol}, closing {closing}, state {state}");
        }
    }

    #[test]
    fn either_direction_keeps_a_flow() {
        let (key, reply, mut forward) = flow(protocol::UDP, 0, 0);
        forward.last_seen = 2000;
        assert!(!is_expired(&key, &reply, Some(&forward), 2000, &USUAL));
        assert!(is_expired(&key, &reply, None, 2000, &USUAL));
    }

    /// A long download whose client has closed its side.
    #[test]
    fn each_answer_begins_a_half_closed_flows_time_anew() {
        let (key, mut reply, forward) = flow(protocol::TCP, FLOW_FIN_CLIENT, FLOW_ESTABLISHED);
        let now = 1000 + USUAL.half_closed + 1;
        assert!(is_expired(&key, &reply, Some(&forward), now, &USUAL));
        reply.last_seen = now;
        assert!(!is_expired(&key, &reply, Some(&forward), now + CROWDED.half_closed, &CROWDED));
    }
}
