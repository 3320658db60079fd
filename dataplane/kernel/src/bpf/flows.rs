//! Collecting dead flows. The programs only ever add; a flow goes when its task is gone, when both sides have closed it,
//! or when it was silent for longer than its kind may be.

use std::collections::{BTreeMap, BTreeSet};

use ebpf_abi::flow::FLOW_ESTABLISHED;
use ebpf_abi::{Endpoint, EndpointKey, ForwardFlow, ForwardKey, ReplyFlow, ReplyKey, protocol};

use super::table::TableError;
use super::tables::Tables;

/// Closed flows stay for late segments: Linux keeps a closed socket as long (`TCP_TIMEWAIT_LEN`).
const CLOSED_SECS: u32 = 60;
/// A connection whose client never spoke again after its first segment: Linux gives up a SYN-ACK after 63 s.
const HALF_OPEN_SECS: u32 = 64;
/// An open connection may be silent for as long as Linux's connection tracking lets it be: five days.
const ESTABLISHED_SECS: u32 = 5 * 24 * 3600;
/// Datagrams have no end: as long as Linux's connection tracking keeps a two-way stream.
const DATAGRAM_SECS: u32 = 180;

/// What a sweep has done.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct FlowSweep {
    pub n_kept: usize,
    pub n_removed: usize,
}

/// Why a sweep could not be done.
pub type SweepError = TableError;

impl Tables {
    /// Removes dead flows. To be called every few seconds; costs one pass over the flow tables.
    pub fn sweep_flows(&mut self) -> Result<FlowSweep, SweepError> {
        let now = self.tick.get()?;
        let ingress_vni = self.config.get()?.ingress_vni;
        let endpoints = self.endpoints.rows()?;
        let forwards = self.flows.rows()?;
        let mut sweep = FlowSweep::default();
        let mut kept_forwards = BTreeSet::new();
        for (key, reply) in self.replies.rows()? {
            let forward_key = key.forward_key(&reply);
            let forward = forwards.get(&forward_key);
            let endpoint = endpoints.get(&EndpointKey { vni: ingress_vni, address: key.endpoint });
            let lives = endpoint.is_some_and(Endpoint::is_local) && !is_expired(&key, &reply, forward, now);
            if lives {
                sweep.n_kept += 1;
                kept_forwards.insert(forward_key);
            } else {
                sweep.n_removed += 1;
                // The forward row first: a packet in between makes both anew, rather than one without the other.
                self.flows.remove(&forward_key)?;
                self.replies.remove(&key)?;
            }
        }
        self.remove_halves(&forwards, &kept_forwards, now)?;
        Ok(sweep)
    }

    /// Forward rows whose reply row another flow has taken over.
    fn remove_halves(
        &mut self,
        forwards: &BTreeMap<ForwardKey, ForwardFlow>,
        kept: &BTreeSet<ForwardKey>,
        now: u32,
    ) -> Result<(), SweepError> {
        for (key, forward) in forwards {
            // A row of this very second may have got its reply row after those were read.
            let is_new = age(now, forward.last_seen) <= 1;
            if !kept.contains(key) && !is_new {
                self.flows.remove(key)?;
            }
        }
        Ok(())
    }
}

/// Silent for longer than a flow of its kind may be.
fn is_expired(key: &ReplyKey, reply: &ReplyFlow, forward: Option<&ForwardFlow>, now: u32) -> bool {
    let idle_secs = forward.map_or(age(now, reply.last_seen), |forward| {
        age(now, forward.last_seen).min(age(now, reply.last_seen))
    });
    let limit_secs = if key.protocol == protocol::UDP {
        DATAGRAM_SECS
    } else if reply.is_closed() {
        CLOSED_SECS
    } else if forward.is_some_and(|forward| forward.state & FLOW_ESTABLISHED != 0) {
        ESTABLISHED_SECS
    } else {
        HALF_OPEN_SECS
    };
    idle_secs > limit_secs
}

/// Seconds since `then`. A tick ahead of ours (the daemon counts from the pinned tick on, so this is a race of one) is
/// now.
fn age(now: u32, then: u32) -> u32 {
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

    fn lives_secs(protocol: u8, closing: u8, state: u8) -> u32 {
        let (key, reply, forward) = flow(protocol, closing, state);
        let is_dead = |idle: u32| is_expired(&key, &reply, Some(&forward), 1000 + idle);
        [CLOSED_SECS, HALF_OPEN_SECS, DATAGRAM_SECS, ESTABLISHED_SECS]
            .into_iter()
            .find(|secs| !is_dead(*secs) && is_dead(secs + 1))
            .expect("one of the limits")
    }

    #[test]
    fn each_kind_has_its_limit() {
        assert_eq!(lives_secs(protocol::TCP, 0, 0), HALF_OPEN_SECS);
        assert_eq!(lives_secs(protocol::TCP, 0, FLOW_ESTABLISHED), ESTABLISHED_SECS);
        assert_eq!(lives_secs(protocol::TCP, FLOW_FIN_CLIENT, FLOW_ESTABLISHED), ESTABLISHED_SECS);
        assert_eq!(lives_secs(protocol::TCP, FLOW_FIN_CLIENT | FLOW_FIN_TASK, FLOW_ESTABLISHED), CLOSED_SECS);
        assert_eq!(lives_secs(protocol::TCP, FLOW_RESET, FLOW_ESTABLISHED), CLOSED_SECS);
        assert_eq!(lives_secs(protocol::UDP, 0, FLOW_ESTABLISHED), DATAGRAM_SECS);
    }

    #[test]
    fn either_direction_keeps_a_flow() {
        let (key, reply, mut forward) = flow(protocol::UDP, 0, 0);
        forward.last_seen = 2000;
        assert!(!is_expired(&key, &reply, Some(&forward), 2000));
        assert!(is_expired(&key, &reply, None, 2000));
    }
}
