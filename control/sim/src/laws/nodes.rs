//! Laws of who lives, where nodes tell each other by gossip.

use std::time::Duration;

use control_model::object::{Node, NodeState};

use crate::event::Event;
use crate::host::HostId;
use crate::scenario::Scenario;
use crate::world::World;

/// A dead node is out of every load balancer by then: 1.5 s, and an answer from before that was late (0.3 s), and a pass of the
/// data plane.
const OUT_OF_RINGS: Duration = Duration::from_millis(1850);
/// All has been well for so long before: nodes have seen each other.
const QUIET: Duration = Duration::from_secs(8);

impl World {
    /// Something breaks, or begins anew.
    pub(crate) fn disturbed(&mut self) {
        self.laws.disturbed_at = self.now();
    }

    /// The machine is about to lose its power while all else is well, or while managers' daemons are away.
    pub(crate) fn expect_out_of_rings(&mut self, id: HostId) {
        let since = self.now();
        let is_quiet = since.saturating_sub(self.laws.disturbed_at) >= QUIET;
        let is_well = self.hosts.iter().all(|host| {
            host.is_powered
                && !host.path.is_dead
                && !host.path.is_stuck
                && host
                    .daemon
                    .as_ref()
                    .map_or(host.replica.is_some(), |daemon| daemon.desk.set().is_complete())
        });
        if is_quiet && is_well && self.net.is_well() && self.scenario == Scenario::Gossip {
            self.queue.after(OUT_OF_RINGS, Event::OutOfRings { host: id, since });
        }
    }

    /// By now nobody sends to the machine that lost its power at `since`, if nothing else has happened meanwhile.
    pub(crate) fn judge_out_of_rings(&mut self, id: HostId, since: Duration) {
        if self.laws.disturbed_at != since {
            return;
        }
        let names: Vec<String> =
            self.host(id).containers.values().map(|container| container.task.name()).collect();
        let mut able = self.hosts.iter().filter(|host| host.id != id && host.daemon.is_some());
        let sender = able.find(|host| names.iter().any(|name| host.routes_to(name))).map(|host| host.id);
        if let Some(sender) = sender {
            self.fail("a dead node is out of every load balancer", format!("{sender:?} sends to {id:?}"));
        }
    }

    /// A node's liveness was written. Where daemons stand still and datagrams are lost and nothing else fails, nobody is
    /// called dead, and so nothing is moved.
    pub(super) fn judge_node(&mut self, node: &Node) {
        if self.scenario == Scenario::Stalls && node.status.state == NodeState::Down {
            self.fail("who lives is not called dead", format!("{:?}", HostId::of_node(node.id)));
        }
    }
}
