//! `meshctl gossip`.

use std::sync::atomic::{AtomicU64, Ordering};

use control_api::node::InspectError;
use control_gossip::core::view::{self, AgentView, Member, PathView};
use dataplane_model::inspect::{AgentState, GossipAgent, GossipMember, GossipPath, GossipReport, PathState};

use crate::node::swarm::Swarm;

/// What this node's gossip knows.
pub fn report(swarm: &Swarm) -> Result<GossipReport, InspectError> {
    let gossip = swarm.gossip_inspector.as_ref();
    let gossip = gossip
        .ok_or_else(|| InspectError("This node takes no part in gossip: it did not get its port".into()))?;
    let view = gossip.view();
    let (keys, key) = gossip.keys();
    let counters = gossip.counters();
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Ok(GossipReport {
        incarnation: view.incarnation,
        trouble: view.trouble,
        key,
        keys,
        members: view.members.into_iter().map(member).collect(),
        ended: view.ended.iter().map(ToString::to_string).collect(),
        n_sent: read(&counters.sent),
        n_received: read(&counters.received),
        refused: counters.refused().map(|(why, n)| (why.word().to_owned(), n)).collect(),
        n_exchanged: read(&counters.exchanged),
        n_exchanges_failed: read(&counters.exchanges_failed),
    })
}

fn member(member: Member) -> GossipMember {
    GossipMember {
        node_id: member.id.to_string(),
        address: member.contact.gossip,
        data_path: member.contact.data_path,
        agent: member.agent.map(agent),
        path: path(&member.path),
    }
}

fn agent(agent: AgentView) -> GossipAgent {
    let (state, by) = match agent.state {
        view::AgentState::Alive => (AgentState::Alive, Vec::new()),
        view::AgentState::Suspect(by) => (AgentState::Suspect, by.iter().map(ToString::to_string).collect()),
        view::AgentState::Silent => (AgentState::Silent, Vec::new()),
    };
    GossipAgent { incarnation: agent.incarnation, state, suspected_by: by }
}

fn path(path: &PathView) -> GossipPath {
    let state = match (path.is_silent, path.has_answered) {
        (true, _) => PathState::Silent,
        (false, true) => PathState::Answers,
        (false, false) => PathState::Unknown,
    };
    let probed = path.probed.map(|probed| u64::try_from(probed.as_millis()).unwrap_or(u64::MAX));
    GossipPath { state, n_missed: path.n_missed, probed_ms_ago: probed }
}
