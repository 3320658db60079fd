//! What happens on this node, in Docker's words (moby `daemon/events.go`).

use std::collections::BTreeMap;

use control_model::Timestamp;
use control_model::object::HealthStatus;

use super::message;
use crate::dto::events::{Actor, Message};
use crate::engine::{Container, ContainerChange, EngineEvent, EngineEventKind, ImageChange, VolumeChange};

const SCOPE: &str = "local";

/// Of the engine's event.
pub fn message_of(event: EngineEvent) -> Message {
    match event.kind {
        EngineEventKind::Container { change, container } => of_container(event.at, change, &container),
        EngineEventKind::Image { change, id, name } => {
            let attributes = BTreeMap::from([("name".to_owned(), name)]);
            message((event.at, SCOPE), ("image", image_action(change).into()), Actor { id, attributes })
        }
        EngineEventKind::Volume { change, name } => {
            let action = match change {
                VolumeChange::Created => "create",
                VolumeChange::Removed => "destroy",
            };
            let attributes = BTreeMap::from([("driver".to_owned(), "local".to_owned())]);
            message((event.at, SCOPE), ("volume", action.into()), Actor { id: name, attributes })
        }
    }
}

/// Of a further process in a container: `action` is Docker's, `exit_code` that of one that has ended.
pub fn of_exec(
    at: Timestamp,
    action: String,
    (container, exec): (&Actor, &str),
    exit_code: Option<i32>,
) -> Message {
    let mut actor = container.clone();
    actor.attributes.insert("execID".into(), exec.to_owned());
    if let Some(code) = exit_code {
        actor.attributes.insert("exitCode".into(), code.to_string());
    }
    message((at, SCOPE), ("container", action), actor)
}

/// Of what a user did to a container, in Docker's word.
pub fn of_container_action(
    at: Timestamp,
    action: &str,
    container: &Container,
    attribute: Option<(&str, String)>,
) -> Message {
    let mut actor = actor_of(container);
    actor.attributes.extend(attribute.map(|(name, value)| (name.to_owned(), value)));
    message((at, SCOPE), ("container", action.to_owned()), actor)
}

fn of_container(at: Timestamp, change: ContainerChange, container: &Container) -> Message {
    let mut actor = actor_of(container);
    let attributes = &mut actor.attributes;
    let action = match change {
        ContainerChange::Created => "create",
        ContainerChange::Started => "start",
        ContainerChange::Signalled(signal) => {
            attributes.insert("signal".into(), signal.to_string());
            "kill"
        }
        ContainerChange::OutOfMemory => "oom",
        ContainerChange::Ended => {
            attributes.insert("exitCode".into(), container.exit_code.to_string());
            if let (Some(started), Some(finished)) = (container.started, container.finished) {
                attributes.insert("execDuration".into(), finished.since(started).as_secs().to_string());
            }
            "die"
        }
        ContainerChange::Stopped => "stop",
        ContainerChange::Health(status) => health_action(status),
        ContainerChange::Removed => "destroy",
    };
    message((at, SCOPE), ("container", action.into()), actor)
}

fn health_action(status: HealthStatus) -> &'static str {
    match status {
        HealthStatus::Starting => "health_status: starting",
        HealthStatus::Healthy => "health_status: healthy",
        HealthStatus::Unhealthy => "health_status: unhealthy",
    }
}

fn image_action(change: ImageChange) -> &'static str {
    match change {
        ImageChange::Pulled => "pull",
        ImageChange::Loaded => "load",
        ImageChange::Imported => "import",
        ImageChange::Tagged => "tag",
        ImageChange::Untagged => "untag",
        ImageChange::Deleted => "delete",
    }
}

/// A container with its labels, its image and its name.
pub fn actor_of(container: &Container) -> Actor {
    let mut attributes = container.labels.clone();
    attributes.insert("image".into(), container.image.clone());
    attributes.insert("name".into(), container.name.clone());
    Actor { id: container.id.clone(), attributes }
}
