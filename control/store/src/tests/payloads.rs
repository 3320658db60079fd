//! Secrets, configs, and the services that refer to them.

use control_model::change::{Change, Object, ObjectRef};
use control_model::dependency::{DependencyFile, DependencySpec, Payload};
use control_model::object::{UpdateState, UpdateStatus};
use control_model::spec::ServiceSpec;
use control_model::{Dependency, DependencyId, DependencyKind, Service, ServiceId, Timestamp};

use super::objects::entry;
use crate::{ApplyError, State};

const SERVICE: ServiceId = ServiceId::from_bits(1);

fn secret(id: u128, n_bytes: usize) -> Change {
    let spec = DependencySpec {
        name: format!("s{id}"),
        data: Payload(vec![0; n_bytes]),
        ..DependencySpec::default()
    };
    let secret = Dependency::new(DependencyId::from_bits(id), DependencyKind::Secret, spec);
    Change::Create(Object::Dependency(Box::new(secret)))
}

/// Service 1 with the files of these secrets, as it is written first or again.
fn given(state: &State, secrets: &[u128], edit: impl FnOnce(&mut Service)) -> Change {
    let file = |id: &u128| DependencyFile {
        kind: DependencyKind::Secret,
        id: DependencyId::from_bits(*id),
        name: format!("s{id}"),
        target: "key".into(),
        uid: 0,
        gid: 0,
        mode: 0o444,
    };
    let old = state.services().get(&SERVICE);
    let mut service = old.map_or_else(
        || Service::new(SERVICE, ServiceSpec { name: "web".into(), ..ServiceSpec::default() }),
        |old| (**old).clone(),
    );
    service.spec.task.container.dependencies = secrets.iter().map(file).collect();
    edit(&mut service);
    let object = Object::Service(Box::new(service));
    old.map_or_else(
        || Change::Create(object.clone()),
        |old| Change::Update { object: object.clone(), expected: old.meta.version },
    )
}

#[test]
fn what_a_service_refers_to_is_there_and_stays() {
    let mut state = State::default();
    let mut index = 0;
    let mut apply = |state: &mut State, change: Change| {
        index += 1;
        state.apply(index, &entry(index.into(), 0, vec![change])).map(drop)
    };
    let id = DependencyId::from_bits(1);
    let delete = || Change::Delete(ObjectRef::Dependency(id));
    let missing = Err(ApplyError::NotFound(ObjectRef::Dependency(id)));
    let refers = given(&state, &[1], |_| ());
    assert_eq!(apply(&mut state, refers.clone()), missing);
    assert_eq!(apply(&mut state, secret(1, 5)), Ok(()));
    assert_eq!(apply(&mut state, refers), Ok(()));
    let in_use = Err(ApplyError::InUse(ObjectRef::Dependency(id)));
    assert_eq!(apply(&mut state, delete()), in_use);

    // An update that is under way may be rolled back.
    let status =
        |state| UpdateStatus { state, started_at: Timestamp(1), completed_at: None, message: String::new() };
    let updated = given(&state, &[], |service| {
        let mut before = service.spec.clone();
        before.task = state.services().get(&SERVICE).expect("made").spec.task.clone();
        service.previous_spec = Some(Box::new(before));
        service.update_status = Some(status(UpdateState::Updating));
    });
    assert_eq!(apply(&mut state, updated), Ok(()));
    assert_eq!(apply(&mut state, delete()), in_use);
    let read = State::from_snapshot(&state.to_snapshot()).expect("a snapshot");
    assert!(read.is_used(id), "counted anew");
    let done = given(&state, &[], |service| service.update_status = Some(status(UpdateState::Completed)));
    assert_eq!(apply(&mut state, done), Ok(()));
    let again = given(&state, &[1, 1], |_| ());
    assert_eq!(apply(&mut state, again), Ok(()));
    assert_eq!(apply(&mut state, delete()), in_use);
    let leaving = given(&state, &[1, 1], |service| service.pending_delete = true);
    assert_eq!(apply(&mut state, leaving), Ok(()));
    assert_eq!(apply(&mut state, delete()), Ok(()));
}

#[test]
fn all_secrets_and_configs_have_a_limit_together() {
    let mut state = State::default();
    let mut index = 0;
    let mut create = |state: &mut State, id, n_bytes| {
        index += 1;
        state.apply(index, &entry(index.into(), 0, vec![secret(id, n_bytes)])).map(drop)
    };
    let full = Err(ApplyError::NoRoom(ObjectRef::Dependency(DependencyId::from_bits(2))));
    assert_eq!(create(&mut state, 1, crate::MAX_PAYLOAD_BYTES - 10), Ok(()));
    assert_eq!(create(&mut state, 2, 11), full);
    assert_eq!(create(&mut state, 2, 10), Ok(()));
    let delete = entry(100, 0, vec![Change::Delete(ObjectRef::Dependency(DependencyId::from_bits(1)))]);
    state.apply(100, &delete).expect("nobody uses it");
    let new = entry(101, 0, vec![secret(3, 1 << 20)]);
    assert!(state.apply(101, &new).is_ok());
}
