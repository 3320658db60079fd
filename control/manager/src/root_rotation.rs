//! Ends a rotation of the root, on the leader: when every node has a certificate of the new root's, the new root becomes
//! the one that nodes trust, and the join tokens are those of its digest.
//!
//! Until then the old root goes on being trusted. What the new one signs is believed by its copy that the old one has
//! signed, which stays in every chain: so any two nodes believe each other at any moment, whichever of the two roots each
//! of them trusts.

use std::sync::Arc;

use control_ca::JoinToken;
use control_consensus::Leadership;
use control_model::authority::CaState;
use control_model::{Change, Cluster, Node, Object};
use control_store::{EventKind, EventReceiver, ReplicatedStore, State};
use futures::StreamExt;
use tokio::sync::watch;

use crate::leading::while_leading;

/// After a write that was overtaken.
const RETRY: std::time::Duration = std::time::Duration::from_millis(200);

/// Works whenever this manager leads. Ends with consensus.
pub async fn run(store: Arc<dyn ReplicatedStore>, leadership: watch::Receiver<Leadership>) {
    while_leading(leadership, |term| lead(&*store, term)).await;
}

/// Never returns.
async fn lead(store: &dyn ReplicatedStore, term: u64) {
    let (mut state, mut events) = store.subscribe();
    loop {
        if let Some(change) = plan(&state, [rand::random(), rand::random()]) {
            match store.propose_as_leader(term, vec![change]).await {
                Ok(_) => tracing::info!(
                    "all nodes have certificates of the new root: the old one is trusted no more"
                ),
                Err(error) => {
                    tracing::warn!(%error, "the rotation of the root is not ended yet");
                    tokio::time::sleep(RETRY).await;
                }
            }
            (state, events) = store.subscribe();
            continue;
        }
        if wait_for_nodes(&mut events).await {
            events = store.subscribe().1;
        }
        state = store.state();
    }
}

/// Returns when a node or the cluster has changed; true when events were missed.
async fn wait_for_nodes(events: &mut EventReceiver) -> bool {
    while let Some(batch) = events.next().await {
        let concerns = |kind: &EventKind| matches!(kind, EventKind::Node(..) | EventKind::Cluster(..));
        if batch.events.iter().any(|event| concerns(&event.kind)) {
            return false;
        }
    }
    true
}

/// The end of the rotation, if there is one and no node is behind. `secrets` are those of the new tokens, worker's first.
fn plan(state: &State, secrets: [u128; 2]) -> Option<Change> {
    let cluster = state.cluster()?;
    let rotation = cluster.ca.rotation.as_ref()?;
    let follows = |node: &Node| node.description.tls.map(|tls| tls.issuer) == cluster.ca.issuer;
    if !state.nodes().iter().all(|node| follows(node)) {
        return None;
    }
    let [worker_token, manager_token] =
        secrets.map(|secret| JoinToken::new(&rotation.root_cert, secret).to_string());
    let ca = CaState {
        root_cert: rotation.root_cert.clone(),
        root_key: rotation.root_key.clone(),
        cross_signed: rotation.cross_signed.clone(),
        rotation: None,
        worker_token,
        manager_token,
        ..cluster.ca.clone()
    };
    let object = Object::Cluster(Box::new(Cluster { ca, ..(**cluster).clone() }));
    Some(Change::Update { object, expected: cluster.meta.version })
}

#[cfg(test)]
mod tests {
    use control_model::authority::{NodeTls, RootRotation};
    use control_model::spec::Role;
    use control_model::{ClusterId, Entry, NodeId, RequestId, Timestamp};

    use super::*;

    /// A cluster on its way to a root, with nodes that say which key has signed their certificates.
    fn state(nodes: &[Option<u8>]) -> State {
        let rotation =
            RootRotation { root_cert: "new".into(), root_key: "key".into(), cross_signed: "cross".into() };
        let mut cluster = Cluster::new(ClusterId::from_bits(1));
        cluster.ca = CaState {
            root_cert: "old".into(),
            worker_token: "w".into(),
            issuer: Some([2; 32]),
            rotation: Some(rotation),
            ..CaState::default()
        };
        let mut changes = vec![Change::Create(Object::Cluster(Box::new(cluster)))];
        for (id, issuer) in (1..).zip(nodes) {
            let mut node = Node::new(NodeId::from_bits(id), Role::Worker);
            node.description.tls = issuer.map(|byte| NodeTls { trust_root: [1; 32], issuer: [byte; 32] });
            changes.push(Change::Create(Object::Node(Box::new(node))));
        }
        let mut state = State::default();
        state
            .apply(1, &Entry { request: RequestId(1), at: Timestamp(0), changes })
            .expect("distinct objects");
        state
    }

    fn ended(state: &State) -> Option<CaState> {
        match plan(state, [3, 4])? {
            Change::Update { object: Object::Cluster(cluster), .. } => Some(cluster.ca),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_last_node_ends_it_with_new_tokens() {
        let ca = ended(&state(&[Some(2), Some(2)])).expect("all follow");
        assert_eq!((ca.root_cert.as_str(), ca.cross_signed.as_str(), ca.rotation), ("new", "cross", None));
        for token in [&ca.worker_token, &ca.manager_token] {
            token.parse::<JoinToken>().expect("a token").verify_root("new").expect("of the new root");
        }
        assert_ne!(ca.worker_token, ca.manager_token);
    }

    #[test]
    fn a_node_that_is_behind_or_says_nothing_holds_it_up() {
        for behind in [Some(1), None] {
            assert_eq!(ended(&state(&[Some(2), behind])), None);
        }
    }

    #[test]
    fn without_a_rotation_there_is_nothing_to_end() {
        let state = state(&[Some(2)]);
        let mut cluster = (**state.cluster().expect("made")).clone();
        let expected = cluster.meta.version;
        cluster.ca.rotation = None;
        let mut after = state;
        let changes = vec![Change::Update { object: Object::Cluster(Box::new(cluster)), expected }];
        after.apply(2, &Entry { request: RequestId(2), at: Timestamp(0), changes }).expect("applied");
        assert_eq!(ended(&after), None);
    }
}
