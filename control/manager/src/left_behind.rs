//! The leader of a forced cluster calls the managers that were left behind: made at another address, it is found by none of
//! them, and they would go on as if nothing had happened.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use control_consensus::{Consensus, Leadership};
use control_model::{NodeId, Timestamp};
use control_store::{FormerManager, ReplicatedStore as _, State};
use futures::future::join_all;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::clock;
use crate::leading::while_leading;
use crate::liveness::table::{Heard, LivenessTable};

/// Between two calls of one that does not answer: it may come back at any time.
const PERIOD: Duration = Duration::from_secs(3);
/// Agents that are members beat once a second, by way of whatever manager.
const HEARD_LATELY: Duration = Duration::from_secs(5);
/// One that is there answers within this time.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);

/// Works whenever this manager leads. Ends with consensus.
pub async fn run(
    consensus: Arc<Consensus>,
    leadership: watch::Receiver<Leadership>,
    table: Arc<LivenessTable>,
) {
    while_leading(leadership, |_| call_all(&consensus, &table)).await;
}

/// Never returns.
async fn call_all(consensus: &Consensus, table: &LivenessTable) {
    loop {
        let calls = left_behind(&consensus.state(), &table.snapshot(), clock::monotonic()).into_iter().map(
            |addr| async move {
                match timeout(CALL_TIMEOUT, consensus.call_behind(addr)).await {
                    Ok(Ok(())) => tracing::info!(%addr, "a manager of the cluster that was given up is told"),
                    Ok(Err(status)) => {
                        tracing::debug!(%addr, %status, "a manager that was left behind is not told");
                    }
                    Err(_) => tracing::debug!(%addr, "a manager that was left behind does not answer"),
                }
            },
        );
        join_all(calls).await;
        sleep(PERIOD).await;
    }
}

/// Where the managers were that may not know of this cluster yet. None, unless it was forced.
fn left_behind(state: &State, heard: &BTreeMap<NodeId, Heard>, now: Timestamp) -> Vec<SocketAddr> {
    if state.cluster().is_none_or(|cluster| cluster.epoch == 0) {
        return Vec::new();
    }
    let own: BTreeSet<SocketAddr> =
        state.nodes().iter().filter_map(|node| Some(node.manager?.addr)).collect();
    let is_here = |former: &&FormerManager| {
        // A manager that was made elsewhere in a node's name is not that node's old machine.
        let is_namesake = state.nodes().get(&former.node).is_some_and(|node| node.manager.is_some());
        // What the state says of a node may be from before.
        let is_heard = heard.get(&former.node).is_some_and(|heard| now.since(heard.at) < HEARD_LATELY);
        is_heard && !is_namesake
    };
    let former = state.former_managers().iter().filter(|former| !is_here(former));
    former.filter_map(|former| former.addr).filter(|addr| !own.contains(addr)).collect()
}

#[cfg(test)]
mod tests {
    use control_model::object::ManagerStatus;
    use control_model::spec::Role;
    use control_model::{Change, Cluster, ClusterId, Generation, Node, Object};
    use control_store::LocalStore;

    use super::*;

    fn id(n: u8) -> NodeId {
        NodeId::from_bits(n.into())
    }

    fn addr(n: u8) -> SocketAddr {
        SocketAddr::from(([198, 18, 0, n], 2377))
    }

    #[test]
    fn those_are_called_that_were_managers_and_are_not_heard() {
        let store = LocalStore::new(|| Timestamp(0));
        let manager = |n: u8| {
            let manager = Some(ManagerStatus { raft_id: n.into(), addr: addr(n) });
            Node { manager, ..Node::new(id(n), Role::Manager) }
        };
        let mut objects = vec![Object::Cluster(Box::new(Cluster::new(ClusterId::from_bits(1))))];
        objects.extend((1..=4).map(|n| Object::Node(Box::new(manager(n)))));
        store.commit(objects.into_iter().map(Change::Create).collect()).expect("new");
        let replace = |object, expected| {
            store.commit(vec![Change::Update { object, expected }]).expect("it fits");
        };
        let is_now = |n: u8, manager, role| {
            let expected = store.state().nodes().get(&id(n)).expect("made").meta.version;
            replace(Object::Node(Box::new(Node { manager, ..Node::new(id(n), role) })), expected);
        };
        is_now(2, None, Role::Worker);
        is_now(3, None, Role::Worker);
        let now = Timestamp(0).after(Duration::from_mins(1));
        let heard = |at| Heard { at, addr: None, applied: Generation::default() };
        let table = BTreeMap::from([(id(2), heard(Timestamp(0))), (id(3), heard(now)), (id(1), heard(now))]);
        let called = || left_behind(&store.state(), &table, now);
        assert_eq!(called(), [], "demoted, and no cluster was forced");
        let cluster = store.state().cluster().expect("made").clone();
        let forced = Cluster { epoch: 1, ..(*cluster).clone() };
        replace(Object::Cluster(Box::new(forced)), cluster.meta.version);
        assert_eq!(called(), [addr(2)]);
        // The first one's name goes on at another address.
        is_now(1, Some(ManagerStatus { raft_id: 9, addr: addr(9) }), Role::Manager);
        assert_eq!(called(), [addr(2), addr(1)]);
    }
}
