//! Whether a task still is what its service asks for.

use std::borrow::Cow;

use control_model::constraint::{node_matches, parse_constraints};
use control_model::object::{Node, Service, Task};
use control_model::spec::{ContainerSpec, PortConfig, TaskSpec};

/// Whether an update must replace `task`. `node` is the one it is bound to.
///
/// Scaling and labels of the service change its spec version but not its tasks: the specs are compared. A change of
/// the placement alone leaves a task where its node still satisfies the constraints. The API's `_up-to-date` filter
/// asks the same, which is why `docker service scale` converges. Tasks of a job's earlier runs are of no use to this one.
pub fn is_task_dirty(service: &Service, task: &Task, node: Option<&Node>) -> bool {
    if task.job_iteration != service.job_iteration() {
        return true;
    }
    if task.spec_version == service.meta.spec_version {
        return false;
    }
    let wanted = &service.spec.task;
    // As whom a node has pulled the image makes no other task of it.
    let has = &with_registry_of(&task.spec, wanted);
    if differs_in_placement_alone(wanted, has) && node.is_some_and(|node| fits(wanted, node)) {
        return false;
    }
    **wanted != **has
        || service.spec.endpoint.mode != task.endpoint_mode
        || !same_ports(&service.spec.endpoint.ports, &task.ports)
}

fn with_registry_of<'t>(has: &'t TaskSpec, wanted: &TaskSpec) -> Cow<'t, TaskSpec> {
    let registry = &wanted.container.registry;
    if has.container.registry == *registry {
        return Cow::Borrowed(has);
    }
    let container = ContainerSpec { registry: registry.clone(), ..has.container.clone() };
    Cow::Owned(TaskSpec { container, ..has.clone() })
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

#[cfg(test)]
mod tests {
    use control_model::object::{Meta, Slot};
    use control_model::spec::{
        EndpointMode, EndpointSpec, NodeSpec, Protocol, PublishMode, Role, ServiceMode, ServiceSpec,
    };
    use control_model::{NodeId, ServiceId, TaskId};

    use super::*;

    fn service() -> Service {
        Service {
            meta: Meta { spec_version: 7, ..Meta::default() },
            ..Service::new(
                ServiceId::from_bits(1),
                ServiceSpec {
                    name: "s".into(),
                    mode: ServiceMode::Global,
                    endpoint: EndpointSpec { mode: EndpointMode::Vip, ports: vec![port(0, 80)] },
                    ..ServiceSpec::default()
                },
            )
        }
    }

    fn port(published: u16, target: u16) -> PortConfig {
        let (protocol, mode) = (Protocol::Tcp, PublishMode::Ingress);
        PortConfig::new(protocol, target, published, mode)
    }

    /// Made from an older version of `service`, with a port given by the allocator.
    fn task() -> Task {
        Task {
            service_name: "s".into(),
            spec_version: 6,
            ports: vec![port(30000, 80)],
            ..Task::new(TaskId::from_bits(1), ServiceId::from_bits(1), Slot::Replica(1))
        }
    }

    fn node(label: &str) -> Node {
        Node {
            spec: NodeSpec { labels: [("zone".into(), label.into())].into(), ..NodeSpec::default() },
            ..Node::new(NodeId::from_bits(1), Role::Worker)
        }
    }

    #[test]
    fn the_same_spec_is_clean_whatever_its_version() {
        assert!(!is_task_dirty(&service(), &task(), None));
        let mut scaled = service();
        scaled.spec.labels.insert("a".into(), "b".into());
        scaled.spec.update.parallelism = 9;
        assert!(!is_task_dirty(&scaled, &task(), None));
    }

    #[test]
    fn the_same_version_is_clean_without_a_look() {
        let odd = Task { spec_version: 7, ports: Vec::new(), ..task() };
        assert!(!is_task_dirty(&service(), &odd, None));
    }

    #[test]
    fn changes_that_a_container_sees_are_dirty() {
        let edits: [fn(&mut Service); 10] = [
            |s| s.spec.task.container.image = "v2".into(),
            |s| s.spec.task.container.env = vec!["A=b".into()],
            |s| s.spec.task.container.args = vec!["-v".into()],
            |s| s.spec.task.resources.limits.memory_bytes = 1 << 30,
            |s| s.spec.task.resources.reservations.nano_cpus = 1 << 30,
            |s| s.spec.task.force_update = 1,
            |s| s.spec.endpoint.mode = EndpointMode::Dnsrr,
            |s| s.spec.endpoint.ports[0].published = 8080,
            |s| s.spec.endpoint.ports[0].target = 81,
            |s| s.spec.endpoint.ports.push(port(0, 81)),
        ];
        for (at, edit) in edits.into_iter().enumerate() {
            let mut edited = service();
            edit(&mut edited);
            assert!(is_task_dirty(&edited, &task(), Some(&node("a"))), "edit {at}");
        }
    }

    #[test]
    fn a_constraint_that_its_node_satisfies_leaves_a_task() {
        let mut constrained = service();
        constrained.spec.task.placement.constraints = vec!["node.labels.zone==a".into()];
        assert!(!is_task_dirty(&constrained, &task(), Some(&node("a"))));
        assert!(is_task_dirty(&constrained, &task(), Some(&node("b"))));
        assert!(is_task_dirty(&constrained, &task(), None));
        constrained.spec.task.force_update = 1;
        assert!(is_task_dirty(&constrained, &task(), Some(&node("a"))));
    }
}
