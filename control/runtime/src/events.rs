//! What happens to this node's containers and images, told to whoever listens. Who is slow misses some.

use std::time::{SystemTime, UNIX_EPOCH};

use control_model::Timestamp;
use control_model::object::HealthStatus;
use tokio::sync::broadcast;

use crate::oci::{ContainerRecord, Stage};

/// Events that wait for one listener.
const MAX_WAITING: usize = 1024;

/// Something has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub at: Timestamp,
    pub kind: EventKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    Container {
        change: ContainerChange,
        record: Box<ContainerRecord>,
    },
    /// Of a pull, `id` is the reference and `name` its repository, both familiar; else `id` is the image's, and `name` the new
    /// name, or the id once more.
    Image {
        change: ImageChange,
        id: String,
        name: String,
    },
    Volume {
        change: VolumeChange,
        name: String,
    },
}

/// What has happened to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerChange {
    Created,
    Started,
    /// It was sent a signal, by number.
    Signalled(i32),
    OutOfMemory,
    Ended,
    /// It has ended because it was told to.
    Stopped,
    Health(HealthStatus),
    Removed,
}

/// What has happened to a named volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeChange {
    Created,
    Removed,
}

/// What has happened to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageChange {
    Pulled,
    Loaded,
    Imported,
    Tagged,
    Untagged,
    Deleted,
}

/// Tells events. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Events(broadcast::Sender<Event>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::Sender::new(MAX_WAITING))
    }
}

impl Events {
    /// Everything from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }

    pub(crate) fn container(&self, change: ContainerChange, record: &ContainerRecord) {
        self.tell(EventKind::Container { change, record: Box::new(record.clone()) });
    }

    pub(crate) fn image(&self, change: ImageChange, id: &str, name: &str) {
        self.tell(EventKind::Image { change, id: id.to_owned(), name: name.to_owned() });
    }

    pub(crate) fn volume(&self, change: VolumeChange, name: &str) {
        self.tell(EventKind::Volume { change, name: name.to_owned() });
    }

    fn tell(&self, kind: EventKind) {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at = Timestamp(i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX));
        // Nobody listens: nobody misses it.
        let _ = self.0.send(Event { at, kind });
    }
}

/// What has happened between two records of a container.
pub(crate) fn changes(before: &ContainerRecord, after: &ContainerRecord) -> Vec<ContainerChange> {
    let is_started = |record: &ContainerRecord| matches!(record.stage, Stage::Started { .. });
    let health = |record: &ContainerRecord| record.health.as_ref().map(|health| health.status);
    let mut changes = Vec::new();
    if is_started(after) && !is_started(before) {
        changes.push(ContainerChange::Started);
    }
    if let Some(status) = health(after).filter(|status| health(before) != Some(*status)) {
        changes.push(ContainerChange::Health(status));
    }
    if let Some(ended) = after.ended.filter(|_| before.ended.is_none()) {
        changes.extend(ended.out_of_memory.then_some(ContainerChange::OutOfMemory));
        changes.push(ContainerChange::Ended);
    }
    changes
}
