//! Whether a task still is what its service asks for.

use control_model::constraint::{node_matches, parse_constraints};
use control_model::object::{Node, Service, Task};
use control_model::spec::{PortConfig, TaskSpec};

/// Whether an update must replace `task`. `node` is the one it is bound to.
///
/// Scaling and labels of the service change its spec version but not its tasks: the specs are compared. A change of
/// the placement alone leaves a task where its node still satisfies the constraints. The API's `_up-to-date` filter
/// asks the same, which is why `docker service scale` converges.
pub fn is_task_dirty(service: &Service, task: &Task, node: Option<&Node>) -> bool {
    if task.spec_version == service.meta.spec_version {
        return false;
    }
    let wanted = &service.spec.task;
    if differs_in_placement_alone(wanted, &task.spec) && node.is_some_and(|node| fits(wanted, node)) {
        return false;
    }
    *wanted != task.spec
        || service.spec.endpoint.mode != task.endpoint_mode
        || !same_ports(&service.spec.endpoint.ports, &task.ports)
}

fn differs_in_placement_alone(wanted: &TaskSpec, has: &TaskSpec) -> bool {
    wanted.placement != has.placement
        && *wanted == TaskSpec { placement: wanted.placement.clone(), ..has.clone() }
}

fn fits(wanted: &TaskSpec, node: &Node) -> bool {
    parse_constraints(&wanted.placement.constraints).is_ok_and(|constraints| node_matches(&constraints, node))
}

/// The task's ports have their published number filled in; the spec's may leave it open.
fn same_ports(wanted: &[PortConfig], has: &[PortConfig]) -> bool {
    wanted.len() == has.len()
        && wanted.iter().zip(has).all(|(wanted, has)| {
            wanted == has || (wanted.published == 0 && *wanted == PortConfig { published: 0, ..has.clone() })
        })
}
