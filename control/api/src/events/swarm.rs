//! What happens in the swarm, in Docker's words (moby `daemon/events.go`). Of nodes, what is in the store: which of them
//! leads, and which managers answer, is not.

use std::collections::BTreeMap;

use control_model::Timestamp;
use control_model::object::{Meta, Node, Service};
use control_model::spec::ServiceMode;
use control_store::{Event, EventKind};

use super::message;
use crate::convert::words::Words as _;
use crate::dto::events::{Actor, Message};

const SCOPE: &str = "swarm";

type Attributes = BTreeMap<String, String>;

/// Of a change in the store; none of what Docker keeps to itself. `now` is when an object goes.
pub fn message_of(event: &Event, now: Timestamp) -> Option<Message> {
    match &event.kind {
        EventKind::Cluster(..) | EventKind::Task(..) => None,
        EventKind::Node(before, after) => {
            let one = after.as_ref().or(before.as_ref())?;
            let mut attributes = named(name_of_node(one));
            if let (Some(before), Some(after)) = (before, after) {
                node_changes(before, after, &mut attributes);
            }
            let step = Step::of(before.is_some(), after.is_some());
            Some(made("node", step, (one.id.to_string(), &one.meta), attributes, now))
        }
        EventKind::Service(before, after) => {
            let one = after.as_ref().or(before.as_ref())?;
            let mut attributes = named(&one.spec.name);
            let step = match (before, after) {
                // Told when its removal began.
                (Some(before), _) if before.pending_delete => return None,
                (Some(_), Some(after)) if after.pending_delete => Step::Remove,
                (before, after) => Step::of(before.is_some(), after.is_some()),
            };
            if let (Some(before), Some(after), Step::Update) = (before, after, step) {
                service_changes(before, after, &mut attributes);
            }
            Some(made("service", step, (one.id.to_string(), &one.meta), attributes, now))
        }
        EventKind::Network(before, after) => {
            let one = after.as_ref().or(before.as_ref())?;
            let step = Step::of(before.is_some(), after.is_some());
            Some(made("network", step, (one.id.to_string(), &one.meta), named(&one.spec.name), now))
        }
        EventKind::Dependency(before, after) => {
            let one = after.as_ref().or(before.as_ref())?;
            let step = Step::of(before.is_some(), after.is_some());
            Some(made(one.kind.word(), step, (one.id.to_string(), &one.meta), named(&one.spec.name), now))
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Create,
    Update,
    Remove,
}

impl Step {
    fn of(was: bool, is: bool) -> Self {
        match (was, is) {
            (_, false) => Self::Remove,
            (false, true) => Self::Create,
            (true, true) => Self::Update,
        }
    }
}

fn made(
    kind: &'static str,
    step: Step,
    (id, meta): (String, &Meta),
    attributes: Attributes,
    now: Timestamp,
) -> Message {
    let (at, action) = match step {
        Step::Create => (meta.created_at, "create"),
        Step::Update => (meta.updated_at, "update"),
        Step::Remove => (now, "remove"),
    };
    message((at, SCOPE), (kind, action.into()), Actor { id, attributes })
}

fn named(name: &str) -> Attributes {
    Attributes::from([("name".to_owned(), name.to_owned())])
}

fn name_of_node(node: &Node) -> &str {
    if node.spec.name.is_empty() { &node.description.hostname } else { &node.spec.name }
}

fn change(attributes: &mut Attributes, what: &str, before: &str, after: &str) {
    if before != after {
        attributes.insert(format!("{what}.old"), before.to_owned());
        attributes.insert(format!("{what}.new"), after.to_owned());
    }
}

fn node_changes(before: &Node, after: &Node, attributes: &mut Attributes) {
    let availability = |node: &Node| node.spec.availability.word();
    change(attributes, "availability", availability(before), availability(after));
    change(attributes, "role", before.certificate_role.word(), after.certificate_role.word());
    change(attributes, "state", before.status.state.word(), after.status.state.word());
}

fn service_changes(before: &Service, after: &Service, attributes: &mut Attributes) {
    let image = |service: &Service| service.spec.task.container.image.clone();
    change(attributes, "image", &image(before), &image(after));
    let replicas = |service: &Service| match service.spec.mode {
        ServiceMode::Replicated { replicas } => Some(replicas.to_string()),
        _ => None,
    };
    if let (Some(before), Some(after)) = (replicas(before), replicas(after)) {
        change(attributes, "replicas", &before, &after);
    }
    let state = |service: &Service| service.update_status.as_ref().map(|status| status.state.word());
    match (state(before), state(after)) {
        (Some(before), Some(after)) => change(attributes, "updatestate", before, after),
        (None, Some(after)) => drop(attributes.insert("updatestate.new".into(), after.into())),
        (_, None) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use control_model::object::{NodeState, UpdateState, UpdateStatus};
    use control_model::spec::{Role, ServiceSpec};
    use control_model::{NodeId, ObjectRef, ServiceId};

    use super::*;

    const NOW: Timestamp = Timestamp(9_000_000_000);

    fn service(replicas: u64) -> Service {
        let spec = ServiceSpec {
            name: "web".into(),
            mode: ServiceMode::Replicated { replicas },
            ..ServiceSpec::default()
        };
        let mut service = Service::new(ServiceId::from_bits(1), spec);
        service.meta = Meta {
            created_at: Timestamp(1_000_000_000),
            updated_at: Timestamp(2_000_000_000),
            ..Meta::default()
        };
        service
    }

    fn told(before: Option<Service>, after: Option<Service>) -> Option<(String, i64, Vec<String>)> {
        let object = ObjectRef::Service(ServiceId::from_bits(1));
        let kind = EventKind::Service(before.map(Arc::new), after.map(Arc::new));
        let message = message_of(&Event { object, kind }, NOW)?;
        let attributes = message.actor.attributes.into_iter().filter(|(name, _)| name != "name");
        Some((
            message.action,
            message.time,
            attributes.map(|(name, value)| format!("{name}={value}")).collect(),
        ))
    }

    #[test]
    fn a_service_comes_changes_and_goes() {
        let none = Vec::<String>::new;
        assert_eq!(told(None, Some(service(1))), Some(("create".into(), 1, none())));
        let mut scaled = service(3);
        scaled.update_status = Some(UpdateStatus {
            state: UpdateState::Updating,
            started_at: Timestamp(2),
            completed_at: None,
            message: String::new(),
        });
        assert_eq!(
            told(Some(service(1)), Some(scaled.clone())),
            Some((
                "update".into(),
                2,
                vec!["replicas.new=3".into(), "replicas.old=1".into(), "updatestate.new=updating".into()]
            ))
        );
        let going = Service { pending_delete: true, ..scaled.clone() };
        assert_eq!(told(Some(scaled), Some(going.clone())), Some(("remove".into(), 9, none())));
        assert_eq!(told(Some(going), None), None);
    }

    #[test]
    fn a_node_tells_what_has_changed() {
        let before = Node::new(NodeId::from_bits(1), Role::Worker);
        let mut after = before.clone();
        after.status.state = NodeState::Down;
        let kind = EventKind::Node(Some(Arc::new(before)), Some(Arc::new(after)));
        let event = Event { object: ObjectRef::Node(NodeId::from_bits(1)), kind };
        let attributes = message_of(&event, NOW).expect("a message").actor.attributes;
        assert_eq!((attributes["state.old"].as_str(), attributes["state.new"].as_str()), ("unknown", "down"));
    }
}
