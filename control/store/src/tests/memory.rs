//! What the state keeps once.

use control_model::change::{Change, Object};
use control_model::spec::{ContainerSpec, TaskSpec};
use control_model::{ServiceId, Shared, Task, TaskId, TaskState};

use super::objects::{Place, entry, service, task};
use crate::State;

const SERVICE: ServiceId = ServiceId::from_bits(1);

fn spec(image: &str) -> Shared<TaskSpec> {
    TaskSpec {
        container: ContainerSpec { image: image.into(), ..ContainerSpec::default() },
        ..TaskSpec::default()
    }
    .into()
}

fn service_with(image: &str, previous: Option<&str>) -> Object {
    let Object::Service(mut object) = service(1, "web", 2) else { unreachable!() };
    object.spec.task = spec(image);
    object.previous_spec = previous.map(|image| {
        let mut old = object.spec.clone();
        old.task = spec(image);
        Box::new(old)
    });
    Object::Service(object)
}

/// A task made of a spec that came by itself, as from the log.
fn task_with(id: u128, image: &str, spec_version: u64) -> Object {
    let place = Place { service: 1, slot: 1, node: None, state: TaskState::New, desired: TaskState::Running };
    let Object::Task(mut object) = task(id, place) else { unreachable!() };
    object.spec = spec(image);
    object.spec_version = spec_version;
    Object::Task(object)
}

fn apply(state: &mut State, index: u64, change: Change) {
    state.apply(index, &entry(index.into(), 0, vec![change])).unwrap();
}

fn stored(state: &State, id: u128) -> &Task {
    state.tasks().get(&TaskId::from_bits(id)).unwrap()
}

fn shares(state: &State, one: u128, other: u128) -> bool {
    stored(state, one).spec.is_same(&stored(state, other).spec)
}

fn shares_with_service(state: &State, id: u128) -> bool {
    stored(state, id).spec.is_same(&state.services().get(&SERVICE).unwrap().spec.task)
}

#[test]
fn tasks_share_the_spec_that_they_are_made_of() {
    let mut state = State::default();
    apply(&mut state, 1, Change::Create(service_with("v1", None)));
    for id in 1..=3 {
        apply(&mut state, 1 + u64::try_from(id).unwrap(), Change::Create(task_with(id, "v1", 1)));
        assert!(shares_with_service(&state, id));
    }
    // The service goes on to another spec: its tasks keep the old one, once.
    apply(&mut state, 5, Change::Update { object: service_with("v2", Some("v1")), expected: 1 });
    apply(&mut state, 6, Change::Create(task_with(4, "v2", 5)));
    assert!(shares_with_service(&state, 4) && shares(&state, 1, 2) && !shares(&state, 1, 4));
    let previous = state.services().get(&SERVICE).unwrap().previous_spec.as_ref().unwrap();
    assert!(previous.task.is_same(&stored(&state, 1).spec));
    // And to a third: what is older than the previous one is shared with whoever has it.
    apply(&mut state, 7, Change::Update { object: service_with("v3", Some("v2")), expected: 5 });
    apply(&mut state, 8, Change::Update { object: task_with(2, "v1", 1), expected: 3 });
    apply(&mut state, 9, Change::Create(task_with(5, "v1", 1)));
    assert!(shares(&state, 1, 2) && shares(&state, 1, 5));
    // So it is after a snapshot, which knows nothing of sharing.
    let state = State::from_snapshot(&state.to_snapshot()).unwrap();
    assert!(shares(&state, 1, 2) && shares(&state, 1, 3) && shares(&state, 1, 5));
    let previous = state.services().get(&SERVICE).unwrap().previous_spec.as_ref().unwrap();
    assert!(previous.task.is_same(&stored(&state, 4).spec));
}
