//! The state as bytes and back, and what two states differ in.

use std::collections::BTreeSet;
use std::sync::Arc;

use control_model::change::{Object, ObjectRef, RequestId};
use control_model::object::{Cluster, Network, Node, Service, Task};
use control_model::{Dependency, Timestamp};
use serde::{Deserialize, Serialize};

use crate::event::{Event, EventKind};
use crate::former::FormerManagers;
use crate::requests::{LogTime, Requests};
use crate::state::State;
use crate::table::Table;

/// A snapshot's bytes can't be read.
#[derive(Debug, thiserror::Error)]
#[error("unreadable snapshot")]
pub struct SnapshotError(#[from] rmp_serde::decode::Error);

/// What a snapshot holds; indexes are rebuilt from it. Objects are [`Borrowed`] to be written, [`Object`]s when read.
#[derive(Serialize, Deserialize)]
struct Image<O> {
    index: u64,
    objects: Vec<O>,
    requests: Vec<(RequestId, Timestamp)>,
    #[serde(default)]
    log_time: LogTime,
    /// None in a snapshot of an earlier version.
    #[serde(default)]
    former_managers: FormerManagers,
}

/// An [`Object`] that is not copied to be written.
#[derive(Serialize)]
enum Borrowed<'a> {
    Cluster(&'a Cluster),
    Node(&'a Node),
    Service(&'a Service),
    Task(&'a Task),
    Network(&'a Network),
    Dependency(&'a Dependency),
}

impl State {
    /// The state as bytes, for [`State::from_snapshot`].
    pub fn to_snapshot(&self) -> Vec<u8> {
        let objects = (self.clusters().iter().map(|o| Borrowed::Cluster(o)))
            .chain(self.nodes().iter().map(|o| Borrowed::Node(o)))
            .chain(self.services().iter().map(|o| Borrowed::Service(o)))
            .chain(self.tasks().iter().map(|o| Borrowed::Task(o)))
            .chain(self.networks().iter().map(|o| Borrowed::Network(o)))
            .chain(self.dependencies().iter().map(|o| Borrowed::Dependency(o)))
            .collect();
        let requests = self.requests.iter().collect();
        let former_managers = self.former_managers.clone();
        rmp_serde::to_vec_named(&Image {
            index: self.index,
            objects,
            requests,
            log_time: self.requests.time(),
            former_managers,
        })
        .expect("model types serialize without error")
    }

    /// The state that [`State::to_snapshot`] wrote.
    pub fn from_snapshot(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let image: Image<Object> = rmp_serde::from_slice(bytes)?;
        let mut state = Self::default();
        state.index = image.index;
        for object in image.objects {
            state.put(object);
        }
        state.requests = Requests::of_snapshot(image.requests, image.log_time);
        state.former_managers = image.former_managers;
        Ok(state)
    }

    /// The events that turn `before` into this state: for watchers over an installed snapshot.
    pub fn diff(&self, before: &Self) -> Vec<Event> {
        let mut events = Vec::new();
        let (old, new) = (before, self);
        diff_table(
            old.clusters(),
            new.clusters(),
            &mut events,
            |o| ObjectRef::Cluster(o.id),
            EventKind::Cluster,
        );
        diff_table(
            old.networks(),
            new.networks(),
            &mut events,
            |o| ObjectRef::Network(o.id),
            EventKind::Network,
        );
        diff_table(old.nodes(), new.nodes(), &mut events, |o| ObjectRef::Node(o.id), EventKind::Node);
        let dependency = |o: &Dependency| ObjectRef::Dependency(o.id);
        diff_table(old.dependencies(), new.dependencies(), &mut events, dependency, EventKind::Dependency);
        diff_table(
            old.services(),
            new.services(),
            &mut events,
            |o| ObjectRef::Service(o.id),
            EventKind::Service,
        );
        diff_table(old.tasks(), new.tasks(), &mut events, |o| ObjectRef::Task(o.id), EventKind::Task);
        events
    }
}

fn diff_table<K: Ord + Clone, V: PartialEq>(
    before: &Table<K, V>,
    after: &Table<K, V>,
    events: &mut Vec<Event>,
    name: impl Fn(&V) -> ObjectRef,
    kind: impl Fn(Option<Arc<V>>, Option<Arc<V>>) -> EventKind,
) {
    let mut seen = BTreeSet::new();
    for (key, new) in after.entries() {
        let old = before.get(key);
        seen.insert(key.clone());
        if old.is_none_or(|old| old != new) {
            events.push(Event { object: name(new), kind: kind(old.cloned(), Some(new.clone())) });
        }
    }
    for (key, old) in before.entries() {
        if !seen.contains(key) {
            events.push(Event { object: name(old), kind: kind(Some(old.clone()), None) });
        }
    }
}
