//! What the agent tells its node's gossip. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use control_model::assignment::Peer;
use control_model::gossip::{Contact, Opinion, Said};
use control_model::{NodeId, Task, TaskId};
use dataplane_model::Table;

use crate::machine::Phase;
use crate::set::AssignmentSet;
use crate::view::NodeContext;

/// Makes it; remembers the other nodes.
#[derive(Debug, Default)]
pub struct Sayer {
    peers: Table<NodeId, Peer>,
    contacts: Arc<BTreeMap<NodeId, Contact>>,
}

impl Sayer {
    /// What is to be told now. Costs a look at each own task and at each that has ended, and one at each node when one has
    /// changed.
    pub fn say<'a>(
        &mut self,
        context: &NodeContext,
        set: &AssignmentSet,
        own: impl IntoIterator<Item = (&'a Task, Phase)>,
        opinion: &Opinion,
    ) -> Said {
        if self.peers != set.peers {
            self.peers = set.peers.clone();
            let others = set.peers.values().filter(|peer| peer.id != context.node);
            let contacts = others.map(|peer| (peer.id, contact(peer, context.vxlan_port)));
            self.contacts = Arc::new(contacts.collect());
        }
        let is_handed_out = |task: &TaskId| set.endpoints.get(task).is_some_and(|endpoint| endpoint.ready);
        let gone = own.into_iter().filter(|(_, phase)| matches!(phase, Phase::Stopping | Phase::Ended));
        Said {
            contacts: self.contacts.clone(),
            ended: gone.map(|(task, _)| task.id).filter(is_handed_out).collect(),
            heeded: opinion.ended.iter().filter(|task| is_handed_out(task)).copied().collect::<BTreeSet<_>>(),
        }
    }
}

fn contact(peer: &Peer, data_path_port: u16) -> Contact {
    Contact { gossip: peer.gossip, data_path: SocketAddr::new(peer.vtep, data_path_port) }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use control_model::assignment::EndpointView;
    use control_model::object::Slot;
    use control_model::{Assignment, AssignmentUpdate, Generation, ServiceId};

    use super::*;

    const ME: NodeId = NodeId::from_bits(1);
    const OTHER: NodeId = NodeId::from_bits(2);

    fn peer(id: NodeId, last: u8) -> Assignment {
        Assignment::Peer(Peer {
            id,
            hostname: String::new(),
            vtep: Ipv4Addr::new(198, 18, 0, last).into(),
            addresses: vec![],
            addresses_since: 1,
            underlay_mtu_bytes: None,
            gossip: Some(([198, 18, 0, last], 7946).into()),
            alive: true,
        })
    }

    fn endpoint(task: u128, node: NodeId, ready: bool) -> Assignment {
        Assignment::Endpoint(EndpointView {
            task: TaskId::from_bits(task),
            service: ServiceId::from_bits(1),
            name: String::new(),
            node,
            attachments: vec![],
            ready,
            weight: 100,
        })
    }

    #[test]
    fn the_other_nodes_and_the_own_tasks_that_are_gone_but_handed_out() {
        let context = NodeContext {
            node: ME,
            hostname: String::new(),
            vtep: IpAddr::from([198, 18, 0, 11]),
            vxlan_port: 4789,
        };
        let own = |id: u128| Task::new(TaskId::from_bits(id), ServiceId::from_bits(1), Slot::Replica(1));
        let tasks = [
            (own(1), Phase::Running),
            (own(2), Phase::Ended),
            (own(3), Phase::Ended),
            (own(4), Phase::Starting),
        ];
        let mut rows =
            vec![peer(ME, 11), peer(OTHER, 12), endpoint(8, OTHER, true), endpoint(9, OTHER, false)];
        rows.extend((1..=4).map(|id| endpoint(id, ME, id != 3)));
        let mut set = AssignmentSet::default();
        set.apply(AssignmentUpdate::Complete { generation: Generation::default(), set: rows })
            .expect("the first");
        let opinion =
            Opinion { ended: Arc::new([7, 8, 9].map(TaskId::from_bits).into()), ..Opinion::default() };
        let said =
            Sayer::default().say(&context, &set, tasks.iter().map(|(task, phase)| (task, *phase)), &opinion);
        let contact = Contact {
            gossip: Some(([198, 18, 0, 12], 7946).into()),
            data_path: ([198, 18, 0, 12], 4789).into(),
        };
        assert_eq!(*said.contacts, [(OTHER, contact)].into());
        assert_eq!(said.ended, [TaskId::from_bits(2)].into(), "the managers know of the third");
        assert_eq!(said.heeded, [TaskId::from_bits(8)].into());
    }
}
