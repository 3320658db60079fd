//! Random writes against a model that keeps objects in one map and looks at all of them each time.

use std::collections::{BTreeMap, BTreeSet};

use control_model::change::{Change, Entry, Object, ObjectRef, RequestId, pack};
use control_model::object::{Meta, NodeState, NodeStatus, Slot};
use control_model::{DependencyKind, NetworkId, NodeId, ServiceId, TaskId, TaskState, Timestamp};
use proptest::prelude::*;

use super::objects::{Place, dependency, entry, network, node, service, status, task};
use crate::{ApplyError, Event, EventKind, State};

#[derive(Default, Clone)]
struct Model {
    objects: BTreeMap<ObjectRef, Object>,
    requests: BTreeSet<RequestId>,
}

impl Model {
    fn apply(&mut self, index: u64, entry: &Entry) -> Result<(), ApplyError> {
        if self.requests.contains(&entry.request) {
            return Ok(());
        }
        let mut next = self.clone();
        for change in &entry.changes {
            next.change(index, entry.at, change)?;
        }
        next.requests.insert(entry.request);
        *self = next;
        Ok(())
    }

    fn change(&mut self, index: u64, at: Timestamp, change: &Change) -> Result<(), ApplyError> {
        match change {
            Change::Create(object) => {
                let name = object.to_ref();
                if self.objects.contains_key(&name) {
                    return Err(ApplyError::Exists(name));
                }
                self.check_name(object)?;
                let meta = Meta { version: index, spec_version: index, created_at: at, updated_at: at };
                self.put(object.clone(), meta);
            }
            Change::Update { object, expected } => {
                let name = object.to_ref();
                let old = self.objects.get(&name).ok_or(ApplyError::NotFound(name))?;
                let (meta, same) = (meta(old), same_spec(old, object));
                if meta.version != *expected {
                    return Err(ApplyError::Conflict(name));
                }
                let unlawful = breaks_law(old, object);
                self.check_name(object)?;
                if unlawful {
                    return Err(ApplyError::Conflict(name));
                }
                let spec_version = if same { meta.spec_version } else { index };
                self.put(object.clone(), Meta { version: index, spec_version, updated_at: at, ..meta });
            }
            Change::Delete(name) => {
                self.objects.remove(name);
            }
            narrow => self.narrow(index, at, narrow),
        }
        Ok(())
    }

    fn narrow(&mut self, index: u64, at: Timestamp, change: &Change) {
        let name = match change {
            Change::NodeStatus { id, .. } => ObjectRef::Node(*id),
            Change::TaskStatus { id, .. }
            | Change::TaskDesired { id, .. }
            | Change::TaskDrained { id }
            | Change::TaskWeight { id, .. } => ObjectRef::Task(*id),
            other => panic!("not drawn here: {other:?}"),
        };
        let Some(old) = self.objects.get(&name) else { return };
        let mut new = old.clone();
        match (&mut new, change) {
            (Object::Node(node), Change::NodeStatus { status, .. }) => node.status = status.clone(),
            (Object::Task(task), Change::TaskStatus { status, .. }) => {
                let (then, now) = (&task.status, status);
                let is_end = then.state.is_terminal() && now.state != TaskState::Orphaned;
                let same = now.state == then.state && now.at >= then.at && now != then;
                if (now.state > then.state && !is_end) || same {
                    if then.state == TaskState::Running {
                        task.life.ran = task.life.ran.or(Some(then.at));
                        task.life.ran_at = task.life.ran_at.or(Some(task.meta.updated_at));
                    }
                    if now.state == TaskState::Running {
                        task.life.ran = task.life.ran.or(Some(now.at));
                        task.life.ran_at = task.life.ran_at.or(Some(at));
                    }
                    if now.state.is_terminal() {
                        task.life.ended_at = task.life.ended_at.or(Some(at));
                    }
                    task.status = now.clone();
                }
            }
            (Object::Task(task), Change::TaskDesired { state, .. }) => {
                task.desired_state = task.desired_state.max(*state);
            }
            (Object::Task(task), Change::TaskDrained { .. }) => task.drained = true,
            (Object::Task(task), Change::TaskWeight { weight, .. }) => {
                task.weight = task.weight.max(*weight);
            }
            _ => unreachable!("the name is of the change's kind"),
        }
        if new != *old {
            let meta = Meta { version: index, updated_at: at, ..meta(old) };
            self.put(new, meta);
        }
    }

    fn put(&mut self, mut object: Object, new: Meta) {
        match &mut object {
            Object::Cluster(o) => o.meta = new,
            Object::Node(o) => o.meta = new,
            Object::Service(o) => o.meta = new,
            Object::Task(o) => o.meta = new,
            Object::Network(o) => o.meta = new,
            Object::Dependency(o) => o.meta = new,
        }
        self.objects.insert(object.to_ref(), object);
    }

    fn check_name(&self, object: &Object) -> Result<(), ApplyError> {
        let taken = self.objects.values().any(|other| match (other, object) {
            (Object::Service(a), Object::Service(b)) => a.id != b.id && a.spec.name == b.spec.name,
            (Object::Network(a), Object::Network(b)) => a.id != b.id && a.spec.name == b.spec.name,
            (Object::Dependency(a), Object::Dependency(b)) => {
                a.id != b.id && a.kind == b.kind && a.spec.name == b.spec.name
            }
            _ => false,
        });
        let name = match object {
            Object::Service(o) => o.spec.name.clone(),
            Object::Network(o) => o.spec.name.clone(),
            Object::Dependency(o) => o.spec.name.clone(),
            _ => String::new(),
        };
        if taken { Err(ApplyError::NameConflict(object.to_ref(), name)) } else { Ok(()) }
    }
}

fn meta(object: &Object) -> Meta {
    match object {
        Object::Cluster(o) => o.meta,
        Object::Node(o) => o.meta,
        Object::Service(o) => o.meta,
        Object::Task(o) => o.meta,
        Object::Network(o) => o.meta,
        Object::Dependency(o) => o.meta,
    }
}

fn same_spec(old: &Object, new: &Object) -> bool {
    match (old, new) {
        (Object::Node(a), Object::Node(b)) => a.spec == b.spec,
        (Object::Service(a), Object::Service(b)) => a.spec == b.spec,
        (Object::Network(a), Object::Network(b)) => a.spec == b.spec,
        (Object::Dependency(a), Object::Dependency(b)) => a.spec == b.spec,
        (Object::Task(a), Object::Task(b)) => a.spec == b.spec,
        _ => unreachable!("two objects of one name are of one kind"),
    }
}

fn breaks_law(old: &Object, new: &Object) -> bool {
    let (Object::Task(old), Object::Task(new)) = (old, new) else { return false };
    let moved =
        (old.service, old.slot) != (new.service, new.slot) || (old.node.is_some() && old.node != new.node);
    let back = new.status.state < old.status.state || new.desired_state < old.desired_state;
    moved || back || (old.drained && !new.drained) || new.weight < old.weight
}

/// All objects of a state, by name.
fn objects(state: &State) -> BTreeMap<ObjectRef, Object> {
    let nodes = state.nodes().iter().map(|o| Object::Node(Box::new((**o).clone())));
    let services = state.services().iter().map(|o| Object::Service(Box::new((**o).clone())));
    let tasks = state.tasks().iter().map(|o| Object::Task(Box::new((**o).clone())));
    let networks = state.networks().iter().map(|o| Object::Network(Box::new((**o).clone())));
    let dependencies = state.dependencies().iter().map(|o| Object::Dependency(Box::new((**o).clone())));
    let all = nodes.chain(services).chain(tasks).chain(networks).chain(dependencies);
    all.map(|object| (object.to_ref(), object)).collect()
}

/// Every look-up by an index gives what a look at all objects gives.
fn check_indexes(state: &State) {
    for name in NAMES {
        let service = state.services().iter().find(|o| o.spec.name == name).map(|o| o.id);
        assert_eq!(state.service_by_name(name).map(|o| o.id), service);
        let network = state.networks().iter().find(|o| o.spec.name == name).map(|o| o.id);
        assert_eq!(state.network_by_name(name).map(|o| o.id), network);
        for kind in DependencyKind::ALL {
            let mut all = state.dependencies().iter();
            let found = all.find(|o| o.kind == kind && o.spec.name == name).map(|o| o.id);
            assert_eq!(state.dependency_by_name(kind, name).map(|o| o.id), found);
        }
    }
    for id in 0..IDS {
        let (service, node) = (ServiceId::from_bits(id), NodeId::from_bits(id));
        let all = || state.tasks().iter();
        assert!(state.tasks_of_service(service).eq(all().filter(|task| task.service == service)));
        assert!(state.tasks_of_node(node).eq(all().filter(|task| task.node == Some(node))));
        for slot in [Slot::Replica(1), Slot::Replica(2)] {
            let in_slot = all().filter(|task| task.service == service && task.slot == slot);
            assert!(state.tasks_of_slot(service, slot).eq(in_slot));
        }
    }
}

/// A mirror fed with events alone.
fn follow(mirror: &mut BTreeMap<ObjectRef, Object>, events: &[Event]) {
    for event in events {
        let (before, after) = match &event.kind {
            EventKind::Node(a, b) => (object(a.as_ref(), Object::Node), object(b.as_ref(), Object::Node)),
            EventKind::Service(a, b) => {
                (object(a.as_ref(), Object::Service), object(b.as_ref(), Object::Service))
            }
            EventKind::Task(a, b) => (object(a.as_ref(), Object::Task), object(b.as_ref(), Object::Task)),
            EventKind::Network(a, b) => {
                (object(a.as_ref(), Object::Network), object(b.as_ref(), Object::Network))
            }
            EventKind::Dependency(a, b) => {
                (object(a.as_ref(), Object::Dependency), object(b.as_ref(), Object::Dependency))
            }
            EventKind::Cluster(..) => panic!("no cluster is drawn"),
        };
        assert_eq!(mirror.get(&event.object), before.as_ref());
        match after {
            Some(after) => drop(mirror.insert(event.object, after)),
            None => drop(mirror.remove(&event.object)),
        }
    }
}

fn object<T: Clone>(shared: Option<&std::sync::Arc<T>>, kind: impl Fn(Box<T>) -> Object) -> Option<Object> {
    shared.map(|value| kind(Box::new((**value).clone())))
}

const IDS: u128 = 3;
const NAMES: [&str; 3] = ["a", "b", "c"];

fn id() -> impl Strategy<Value = u128> {
    0..IDS
}

fn any_name() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(&NAMES)
}

fn task_state() -> impl Strategy<Value = TaskState> {
    use TaskState::{Assigned, Failed, New, Running, Shutdown};
    proptest::sample::select(&[New, Assigned, Running, Shutdown, Failed])
}

fn any_object() -> impl Strategy<Value = Object> {
    let place = (id(), 1..3_u64, proptest::option::of(id()), task_state(), task_state());
    prop_oneof![
        (id(), any_name()).prop_map(|(id, name)| node(id, name)),
        (id(), any_name(), 0..2_u64).prop_map(|(id, name, replicas)| service(id, name, replicas)),
        (id(), any_name(), any::<bool>()).prop_map(|(id, name, ingress)| network(id, name, ingress)),
        (id(), any_name(), any::<u8>()).prop_map(|(id, name, data)| dependency(id, name, data)),
        (0..2 * IDS, place).prop_map(|(id, (service, slot, node, state, desired))| {
            task(id, Place { service, slot, node, state, desired })
        }),
    ]
}

fn any_ref() -> impl Strategy<Value = ObjectRef> {
    any_object().prop_map(|object| object.to_ref())
}

fn node_status() -> impl Strategy<Value = NodeStatus> {
    any::<bool>().prop_map(|data_path_alive| NodeStatus {
        state: NodeState::Ready,
        data_path_alive,
        ..NodeStatus::default()
    })
}

/// A change; `Update`s are given their expected version later.
fn any_change() -> impl Strategy<Value = Change> {
    let task_id = || (0..2 * IDS).prop_map(TaskId::from_bits);
    prop_oneof![
        4 => any_object().prop_map(Change::Create),
        4 => any_object().prop_map(|object| Change::Update { object, expected: 0 }),
        1 => any_ref().prop_map(Change::Delete),
        1 => (id(), node_status())
            .prop_map(|(id, status)| Change::NodeStatus { id: NodeId::from_bits(id), status }),
        2 => (task_id(), task_state(), 0..3_i64)
            .prop_map(|(id, state, at)| Change::TaskStatus { id, status: status(state, at) }),
        1 => (task_id(), task_state()).prop_map(|(id, state)| Change::TaskDesired { id, state }),
        1 => task_id().prop_map(|id| Change::TaskDrained { id }),
        1 => (task_id(), 0..=100_u8).prop_map(|(id, weight)| Change::TaskWeight { id, weight }),
    ]
}

fn any_entries() -> impl Strategy<Value = Vec<(u128, bool, Vec<Change>)>> {
    let changes = proptest::collection::vec(any_change(), 0..4);
    proptest::collection::vec((0..40_u128, proptest::bool::weighted(0.8), changes), 1..40)
}

/// Gives `Update`s the current version, so that most of them pass; stale ones another.
fn expect_versions(model: &Model, fresh: bool, changes: Vec<Change>) -> Vec<Change> {
    let version = |object: &Object| {
        model.objects.get(&object.to_ref()).map_or(0, |now| meta(now).version + u64::from(!fresh))
    };
    let expect = |change| match change {
        Change::Update { object, .. } => Change::Update { expected: version(&object), object },
        change => change,
    };
    changes.into_iter().map(expect).collect()
}

proptest! {
    #[test]
    fn the_state_is_what_the_model_says(entries in any_entries()) {
        let (mut state, mut packed, mut model) = (State::default(), State::default(), Model::default());
        let mut mirror = BTreeMap::new();
        let mut versions = Vec::new();
        for (index, (request, fresh, changes)) in (1..).zip(entries) {
            let at = i64::try_from(index).unwrap();
            let entry = entry(request, at, expect_versions(&model, fresh, changes));
            let before = state.clone();
            let result = state.apply(index, &entry);
            let changes = pack(entry.changes.clone(), |id| before.tasks().get(&id).map(|task| &**task));
            let in_few_words = packed.apply(index, &Entry { changes, ..entry.clone() });
            prop_assert_eq!(&in_few_words, &result);
            let expected = model.apply(index, &entry).err();
            prop_assert_eq!(result.as_ref().err(), expected.as_ref());
            prop_assert_eq!(state.index(), index);
            follow(&mut mirror, result.as_deref().unwrap_or_default());
            prop_assert_eq!(&mirror, &model.objects);
            prop_assert_eq!(&objects(&state), &model.objects);
            check_indexes(&state);
            versions.push(before);
        }
        // A snapshot is the same state, memory of requests included.
        let again = State::from_snapshot(&state.to_snapshot()).unwrap();
        prop_assert_eq!(again.to_snapshot(), state.to_snapshot());
        check_indexes(&again);
        // From any earlier state the difference leads here, and an earlier state is untouched by what came later.
        for before in versions {
            let mut mirror = objects(&before);
            follow(&mut mirror, &state.diff(&before));
            prop_assert_eq!(&mirror, &model.objects);
        }
    }

    #[test]
    fn no_bytes_panic_the_reader_of_snapshots(bytes: Vec<u8>) {
        drop(State::from_snapshot(&bytes));
    }
}

#[test]
fn the_ingress_network_is_found() {
    let mut state = State::default();
    assert!(state.ingress_network().is_none());
    let changes = vec![Change::Create(network(1, "a", false)), Change::Create(network(2, "b", true))];
    state.apply(1, &entry(1, 0, changes)).unwrap();
    assert_eq!(state.ingress_network().unwrap().id, NetworkId::from_bits(2));
}
