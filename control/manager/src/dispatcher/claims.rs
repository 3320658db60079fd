//! Which addresses a node may say are its own. Others' return traffic goes to who has an address, and who has a tunnel's end
//! takes the place of the node that had it: so a worker's word alone must not give it what is another's.
//!
//! An address is held by who has its tunnel's end there, or has a session from there, while its agent is not given up.
//! All others may be claimed by anybody at any time: virtual addresses move between nodes that live.

use std::collections::BTreeSet;
use std::net::IpAddr;

use control_model::object::{NodeDescription, NodeState};
use control_model::{Change, Node, NodeId};
use control_store::State;

/// A node claims what another one holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "address {address} is that of node {owner} ({hostname}), which is heard: it can be claimed when that node is down, or by a \
     session from this address"
)]
pub struct Foreign {
    address: IpAddr,
    owner: NodeId,
    hostname: String,
}

/// May `node` describe itself so, in a session that comes from `source`?
pub fn check(
    state: &State,
    node: NodeId,
    source: Option<IpAddr>,
    description: &NodeDescription,
) -> Result<(), Foreign> {
    let claimed: BTreeSet<IpAddr> = claimed(description).collect();
    let mut others = state.nodes().iter().filter(|other| other.id != node && is_heard(other));
    let foreign = others.find_map(|other| {
        if source.is_some_and(|source| is_of_this_machine(source) || held(other).any(|ip| ip == source)) {
            return None;
        }
        held(other).find(|ip| claimed.contains(ip)).map(|address| (address, other))
    });
    let Some((address, owner)) = foreign else { return Ok(()) };
    Err(Foreign { address, owner: owner.id, hostname: owner.description.hostname.clone() })
}

/// What is to be written of a description that may be written. A node that comes back to an address which another one has
/// taken meanwhile is the later one again.
pub fn changes(
    state: &State,
    known: &Node,
    source: Option<IpAddr>,
    description: NodeDescription,
) -> Vec<Change> {
    let describe = |description| Change::NodeDescription { id: known.id, description: Box::new(description) };
    if known.description != description {
        return vec![describe(description)];
    }
    let own: BTreeSet<IpAddr> = held_from(&description, source).collect();
    let mut later =
        state.nodes().iter().filter(|o| o.id != known.id && o.addresses_since > known.addresses_since);
    if later.any(|other| claimed(&other.description).any(|ip| own.contains(&ip))) {
        let nowhere = NodeDescription { addresses: Vec::new(), ..description.clone() };
        return vec![describe(nowhere), describe(description)];
    }
    Vec::new()
}

/// The leader has not found its agent silent.
fn is_heard(node: &Node) -> bool {
    !matches!(node.status.state, NodeState::Down | NodeState::Disconnected)
}

/// A session of the agent beside this manager.
fn is_of_this_machine(source: IpAddr) -> bool {
    source.is_loopback()
}

fn claimed(description: &NodeDescription) -> impl Iterator<Item = IpAddr> {
    let all = description.addresses.iter().chain(&description.data_path_addr);
    all.map(IpAddr::to_canonical)
}

fn held(node: &Node) -> impl Iterator<Item = IpAddr> {
    held_from(&node.description, node.status.addr)
}

/// What a node that describes itself so, and comes from `source`, has alone. Behind a translator of addresses `source` is not its
/// own.
fn held_from(description: &NodeDescription, source: Option<IpAddr>) -> impl Iterator<Item = IpAddr> {
    let source = source.filter(|source| claimed(description).any(|ip| ip == *source));
    source.into_iter().chain(description.data_path_addr.map(|ip| ip.to_canonical()))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use control_model::object::NodeStatus;
    use control_model::spec::Role;
    use control_model::{Entry, Object, RequestId, Timestamp};

    use super::*;

    fn ip(last: u8) -> IpAddr {
        Ipv4Addr::new(198, 18, 0, last).into()
    }

    fn id(n: u8) -> NodeId {
        NodeId::from_bits(n.into())
    }

    fn says(data_path: u8, further: &[u8]) -> NodeDescription {
        NodeDescription {
            data_path_addr: Some(ip(data_path)),
            addresses: [&data_path].into_iter().chain(further).map(|last| ip(*last)).collect(),
            ..NodeDescription::default()
        }
    }

    /// Nodes 1… that say this of themselves in sessions from their first further address, or their tunnel's end.
    fn world(said: &[(u8, &[u8])]) -> State {
        let mut state = State::default();
        for (n, (data_path, further)) in (1..).zip(said) {
            let addr = Some(ip(*further.first().unwrap_or(data_path)));
            let status = NodeStatus { state: NodeState::Ready, addr, ..NodeStatus::default() };
            let node = Object::Node(Box::new(Node { status, ..Node::new(id(n), Role::Worker) }));
            let description = Box::new(says(*data_path, further));
            apply(&mut state, vec![Change::Create(node), Change::NodeDescription { id: id(n), description }]);
        }
        state
    }

    fn apply(state: &mut State, changes: Vec<Change>) {
        let index = state.index() + 1;
        let entry = Entry { request: RequestId(index.into()), at: Timestamp(0), changes };
        state.apply(index, &entry).expect("valid changes");
    }

    fn down(n: u8) -> Change {
        let status = NodeStatus { state: NodeState::Down, ..NodeStatus::default() };
        Change::NodeStatus { id: id(n), status }
    }

    fn owner(checked: Result<(), Foreign>) -> Option<(NodeId, IpAddr)> {
        checked.err().map(|foreign| (foreign.owner, foreign.address))
    }

    #[test]
    fn what_another_holds_that_is_heard_is_not_to_be_claimed() {
        // The tunnels of 1 end at .11, its sessions come from .21, and .31 is a virtual address that it has now.
        let mut state = world(&[(11, &[21, 31]), (12, &[])]);
        let check = |state: &State, description| check(state, id(2), Some(ip(12)), &description);
        assert_eq!(
            owner(check(&state, says(11, &[12]))),
            Some((id(1), ip(11))),
            "its tunnel's end as one's own"
        );
        assert_eq!(owner(check(&state, says(12, &[11]))), Some((id(1), ip(11))), "its tunnel's end");
        assert_eq!(owner(check(&state, says(12, &[21]))), Some((id(1), ip(21))), "where it comes from");
        let mapped = Ipv4Addr::new(198, 18, 0, 21).to_ipv6_mapped().into();
        let disguised = NodeDescription { addresses: vec![mapped], ..says(12, &[]) };
        assert_eq!(owner(check(&state, disguised)), Some((id(1), ip(21))), "in other words");
        assert_eq!(owner(check(&state, says(12, &[31]))), None, "a virtual address");
        apply(&mut state, vec![down(1)]);
        assert_eq!(owner(check(&state, says(11, &[12, 21]))), None, "it is given up");
    }

    #[test]
    fn who_comes_from_there_has_it() {
        let state = world(&[(11, &[21])]);
        let check = |source, description| check(&state, id(2), source, &description);
        assert_eq!(owner(check(Some(ip(21)), says(11, &[21]))), None, "the machine joined anew");
        assert_eq!(owner(check(Some(ip(11)), says(11, &[21]))), None);
        assert!(owner(check(Some(ip(9)), says(11, &[21]))).is_some());
        let beside = IpAddr::from(Ipv4Addr::LOCALHOST);
        assert_eq!(owner(check(Some(beside), says(11, &[21]))), None, "the agent beside this manager");
    }

    #[test]
    fn an_address_that_its_node_does_not_have_is_no_ones() {
        let mut state = world(&[(11, &[]), (12, &[])]);
        // Both come through one translator, which is a node itself.
        for n in 1..=2 {
            let status = NodeStatus { state: NodeState::Ready, addr: Some(ip(99)), ..NodeStatus::default() };
            apply(&mut state, vec![Change::NodeStatus { id: id(n), status }]);
        }
        assert_eq!(owner(check(&state, id(3), Some(ip(13)), &says(13, &[99]))), None);
        let liar = check(&state, id(2), Some(ip(99)), &says(11, &[]));
        assert_eq!(owner(liar), Some((id(1), ip(11))), "its way is no proof");
    }

    #[test]
    fn who_comes_back_has_its_own_addresses_again() {
        let mut state = world(&[(11, &[31]), (12, &[])]);
        let describe =
            |n, description| Change::NodeDescription { id: id(n), description: Box::new(description) };
        apply(&mut state, vec![down(1), describe(2, says(11, &[12, 31]))]);
        let comes_back = |state: &State, source| {
            let known = state.nodes().get(&id(1)).expect("a node");
            changes(state, known, Some(ip(source)), says(11, &[31]))
        };
        let back = comes_back(&state, 11);
        apply(&mut state, back);
        let since = |n| state.nodes().get(&id(n)).expect("a node").addresses_since;
        assert!(since(1) > since(2));
        assert_eq!(state.nodes().get(&id(1)).expect("a node").description, says(11, &[31]));
        assert_eq!(comes_back(&state, 11), [], "once");
        // What another has of it that is neither its tunnel's end nor where it comes from has moved.
        apply(&mut state, vec![describe(2, says(12, &[31]))]);
        assert_eq!(comes_back(&state, 11), []);
    }
}
