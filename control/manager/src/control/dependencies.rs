//! Secrets and configs: list, look up, create, label, remove (swarmkit `manager/controlapi/secret.go`, `config.go`).

use std::borrow::Cow;
use std::sync::Arc;

use control_model::dependency::DependencySpec;
use control_model::spec::ServiceSpec;
use control_model::validate::SpecError;
use control_model::validate_dependency::{validate_dependency, validate_dependency_update};
use control_model::{Change, Dependency, DependencyId, DependencyKind, Object, ObjectRef};
use control_store::{State, held};

use super::Control;
use super::error::{ControlError, Kind};
use super::lookup::{LabelFilter, find, labels_match, starts_with_any};

/// Which secrets or configs a list shows. Ids and names are alternatives, labels are all needed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DependencyFilter {
    pub id_prefixes: Vec<String>,
    pub name_prefixes: Vec<String>,
    pub names: Vec<String>,
    pub labels: LabelFilter,
}

impl DependencyFilter {
    fn matches(&self, one: &Dependency) -> bool {
        let begins = |text: &str, with: &[String]| !with.is_empty() && starts_with_any(text, with);
        let is_any = self.id_prefixes.is_empty() && self.name_prefixes.is_empty() && self.names.is_empty();
        let is_named = is_any
            || begins(&one.id.to_string(), &self.id_prefixes)
            || begins(&one.spec.name, &self.name_prefixes)
            || self.names.contains(&one.spec.name);
        is_named && labels_match(&one.spec.labels, &self.labels)
    }
}

impl Control {
    /// The secrets or configs that `filter` lets through, by id.
    pub async fn list_dependencies(
        &self,
        kind: DependencyKind,
        filter: &DependencyFilter,
    ) -> Result<Vec<Arc<Dependency>>, ControlError> {
        let state = self.read().await?;
        Ok(of_kind(&state, kind).filter(|one| filter.matches(one)).cloned().collect())
    }

    /// The secret or config that `input` names: id, name, or beginning of an id.
    pub async fn dependency(
        &self,
        kind: DependencyKind,
        input: &str,
    ) -> Result<Arc<Dependency>, ControlError> {
        find_dependency(&*self.read().await?, kind, input).cloned()
    }

    /// Makes a secret or config.
    pub async fn create_dependency(
        &self,
        kind: DependencyKind,
        spec: DependencySpec,
    ) -> Result<DependencyId, ControlError> {
        validate_dependency(kind, &spec).map_err(SpecError::from)?;
        let id = DependencyId::from_bits(rand::random());
        self.write(|state| {
            if state.dependency_by_name(kind, &spec.name).is_some() {
                return Err(ControlError::DependencyExists(kind.into(), spec.name.clone()));
            }
            let new = Dependency::new(id, kind, spec.clone());
            if !state.has_room_for(&new) {
                return Err(ControlError::NoRoom);
            }
            Ok((vec![Change::Create(Object::Dependency(Box::new(new)))], id))
        })
        .await
    }

    /// Gives the secret or config `input` other labels, if its spec still has `version`. Nothing else of it ever changes.
    pub async fn update_dependency(
        &self,
        kind: DependencyKind,
        input: &str,
        version: u64,
        spec: &DependencySpec,
    ) -> Result<(), ControlError> {
        self.write(|state| {
            let old = find_dependency(state, kind, input)?;
            if old.meta.spec_version != version {
                return Err(ControlError::OutOfSequence);
            }
            validate_dependency_update(&old.spec, spec).map_err(SpecError::from)?;
            let mut new = Dependency::clone(old);
            new.spec.labels.clone_from(&spec.labels);
            let expected = old.meta.version;
            Ok((vec![Change::Update { object: Object::Dependency(Box::new(new)), expected }], ()))
        })
        .await
    }

    /// Removes the secret or config `input`, if no service refers to it but such as are being removed.
    pub async fn remove_dependency(&self, kind: DependencyKind, input: &str) -> Result<(), ControlError> {
        self.write(|state| {
            let old = find_dependency(state, kind, input)?;
            if state.is_used(old.id) {
                let users = state.services().iter().filter(|service| held(service).any(|id| id == old.id));
                let users = users.map(|service| service.spec.name.clone()).collect();
                return Err(ControlError::DependencyInUse(kind.into(), old.spec.name.clone(), users));
            }
            Ok((vec![Change::Delete(ObjectRef::Dependency(old.id))], ()))
        })
        .await
    }
}

/// Whether all that the service's tasks are to be given exists.
pub(super) fn check_dependencies(state: &State, spec: &ServiceSpec) -> Result<(), ControlError> {
    for kind in DependencyKind::ALL {
        let files = spec.task.container.dependencies.iter().filter(|file| file.kind == kind);
        let is_missing = |id| state.dependencies().get(&id).is_none_or(|found| found.kind != kind);
        let missing: Vec<String> =
            files.filter(|file| is_missing(file.id)).map(|file| file.name.clone()).collect();
        if !missing.is_empty() {
            return Err(ControlError::DependenciesMissing(kind.into(), missing));
        }
    }
    Ok(())
}

fn of_kind(state: &State, kind: DependencyKind) -> impl Iterator<Item = &Arc<Dependency>> {
    state.dependencies().iter().filter(move |one| one.kind == kind)
}

fn find_dependency<'a>(
    state: &'a State,
    kind: DependencyKind,
    input: &str,
) -> Result<&'a Arc<Dependency>, ControlError> {
    let by_id = |id| state.dependencies().get(&id).filter(|one| one.kind == kind);
    let all = || of_kind(state, kind).map(|one| (one.id, one));
    find(kind.into(), input, by_id, all, |one| Cow::Borrowed(&one.spec.name))
}

impl From<DependencyKind> for Kind {
    fn from(kind: DependencyKind) -> Self {
        match kind {
            DependencyKind::Secret => Self::Secret,
            DependencyKind::Config => Self::Config,
        }
    }
}
