//! Services: list, look up, create, change, roll back, remove.

use std::borrow::Cow;
use std::sync::Arc;

use control_allocator::check_ports;
use control_model::object::{JobStatus, UpdateState, UpdateStatus};
use control_model::spec::{PublishMode, ServiceMode, ServiceSpec};
use control_model::validate::validate_service;
use control_model::{Change, Object, Service, ServiceId, TaskState, Timestamp};
use control_store::State;

use super::Control;
use super::dependencies::check_dependencies;
use super::error::{ControlError, Kind};
use super::lookup::{LabelFilter, find, labels_match, starts_with_any};

/// Which services a list shows. Values of one field are alternatives, fields are all needed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceFilter {
    pub id_prefixes: Vec<String>,
    pub name_prefixes: Vec<String>,
    pub labels: LabelFilter,
    /// `replicated`, `global`, `replicated-job`, `global-job`.
    pub modes: Vec<String>,
}

impl ServiceFilter {
    fn matches(&self, service: &Service) -> bool {
        let mode = service.spec.mode.word();
        starts_with_any(&service.id.to_string(), &self.id_prefixes)
            && starts_with_any(&service.spec.name, &self.name_prefixes)
            && labels_match(&service.spec.labels, &self.labels)
            && (self.modes.is_empty() || self.modes.iter().any(|wanted| wanted == mode))
    }
}

/// What `docker service ls` counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServiceStatus {
    pub running_tasks: u64,
    pub desired_tasks: u64,
    /// Of a job: those of its current run that have ended well.
    pub completed_tasks: u64,
}

impl ServiceStatus {
    /// Of `service` in `state` (swarmkit `ListServiceStatuses`).
    pub fn of(state: &State, service: &Service) -> Self {
        let mut status = Self::default();
        let run = service.job_iteration();
        for task in state.tasks_of_service(service.id).filter(|task| task.job_iteration == run) {
            let is_complete = run.is_some() && task.status.state == TaskState::Complete;
            status.running_tasks += u64::from(task.status.state == TaskState::Running);
            status.completed_tasks += u64::from(is_complete);
            status.desired_tasks += u64::from(task.is_to_run() && !is_complete);
        }
        match service.spec.mode {
            ServiceMode::Replicated { replicas } => status.desired_tasks = replicas,
            ServiceMode::ReplicatedJob { max_concurrent, .. } => status.desired_tasks = max_concurrent,
            ServiceMode::Global | ServiceMode::GlobalJob => {}
        }
        status
    }
}

impl Control {
    /// The services that `filter` lets through, by id, with their counts.
    pub async fn list_services(
        &self,
        filter: &ServiceFilter,
    ) -> Result<Vec<(Arc<Service>, ServiceStatus)>, ControlError> {
        let state = self.read().await?;
        let kept = visible(&state).filter(|service| filter.matches(service));
        Ok(kept.map(|service| (service.clone(), ServiceStatus::of(&state, service))).collect())
    }

    /// The service that `input` names: id, name, or beginning of an id.
    pub async fn service(&self, input: &str) -> Result<Arc<Service>, ControlError> {
        find_service(&*self.read().await?, input).cloned()
    }

    /// Makes a service. One that is being removed and still holds the name is waited for.
    pub async fn create_service(&self, spec: ServiceSpec) -> Result<ServiceId, ControlError> {
        validate_service(&spec)?;
        self.wait_while(|state| {
            state.service_by_name(&spec.name).is_some_and(|holder| holder.pending_delete)
        })
        .await;
        let id = ServiceId::from_bits(rand::random());
        let now = (self.clock)();
        let job = spec.mode.is_job().then_some(JobStatus { iteration: 0, last_execution: now });
        self.write(|state| {
            if state.service_by_name(&spec.name).is_some() {
                return Err(ControlError::NameConflict(Kind::Service, spec.name.clone()));
            }
            check_against_others(state, &spec, None)?;
            let service = Service { job, ..Service::new(id, spec.clone()) };
            Ok((vec![Change::Create(Object::Service(Box::new(service)))], id))
        })
        .await
    }

    /// Gives the service `input` another spec, if its spec still has `version`. A job runs again, whatever is new.
    pub async fn update_service(
        &self,
        input: &str,
        version: u64,
        spec: ServiceSpec,
    ) -> Result<(), ControlError> {
        validate_service(&spec)?;
        let now = (self.clock)();
        self.write(|state| {
            let old = find_service(state, input)?;
            if old.meta.spec_version != version {
                return Err(ControlError::OutOfSequence);
            }
            if std::mem::discriminant(&old.spec.mode) != std::mem::discriminant(&spec.mode) {
                return Err(ControlError::ModeChange);
            }
            if old.spec.name != spec.name {
                return Err(ControlError::Rename);
            }
            check_against_others(state, &spec, Some(old.id))?;
            let service = Service {
                spec: spec.clone(),
                previous_spec: Some(Box::new(old.spec.clone())),
                previous_spec_version: old.meta.spec_version,
                update_status: None,
                job: next_run(old, now),
                ..(**old).clone()
            };
            Ok((vec![update(service, old)], ()))
        })
        .await
    }

    /// Gives the service `input` the spec that it had before the current one, if its spec still has `version`.
    pub async fn rollback_service(&self, input: &str, version: u64) -> Result<(), ControlError> {
        let now = (self.clock)();
        self.write(|state| {
            let old = find_service(state, input)?;
            if old.meta.spec_version != version {
                return Err(ControlError::OutOfSequence);
            }
            let Some(previous) = &old.previous_spec else {
                return Err(ControlError::NoPreviousSpec(old.id));
            };
            check_against_others(state, previous, Some(old.id))?;
            let service = Service {
                spec: (**previous).clone(),
                previous_spec: Some(Box::new(old.spec.clone())),
                previous_spec_version: old.meta.spec_version,
                // A job is not updated task by task: it runs again.
                update_status: old.job.is_none().then(|| UpdateStatus {
                    state: UpdateState::RollbackStarted,
                    started_at: now,
                    completed_at: None,
                    message: "manually requested rollback".into(),
                }),
                job: next_run(old, now),
                ..(**old).clone()
            };
            Ok((vec![update(service, old)], ()))
        })
        .await
    }

    /// Removes the service `input`: it is not shown any more at once, and gone when its tasks are.
    pub async fn remove_service(&self, input: &str) -> Result<(), ControlError> {
        self.write(|state| {
            let old = find_service(state, input)?;
            Ok((vec![update(Service { pending_delete: true, ..(**old).clone() }, old)], ()))
        })
        .await
    }
}

/// The run that an update of `service` begins, if it is a job.
fn next_run(service: &Service, now: Timestamp) -> Option<JobStatus> {
    service.job.map(|job| JobStatus { iteration: job.iteration + 1, last_execution: now })
}

fn update(service: Service, old: &Service) -> Change {
    Change::Update { object: Object::Service(Box::new(service)), expected: old.meta.version }
}

/// Services that users see.
fn visible(state: &State) -> impl Iterator<Item = &Arc<Service>> {
    state.services().iter().filter(|service| !service.pending_delete)
}

pub(super) fn find_service<'a>(state: &'a State, input: &str) -> Result<&'a Arc<Service>, ControlError> {
    let by_id = |id| state.services().get(&id).filter(|service| !service.pending_delete);
    let called = state.service_by_name(input).filter(|service| !service.pending_delete);
    if let Some(called) = called
        && input.parse().ok().and_then(by_id).is_none()
    {
        return Ok(called);
    }
    find(Kind::Service, input, by_id, || visible(state).map(|s| (s.id, s)), |s| Cow::Borrowed(&s.spec.name))
}

/// Ports, networks, secrets and configs that other objects decide on. `own` is the service that is being changed.
fn check_against_others(
    state: &State,
    spec: &ServiceSpec,
    own: Option<ServiceId>,
) -> Result<(), ControlError> {
    for attachment in &spec.task.networks {
        let network = state.networks().get(&attachment.target).filter(|network| !network.pending_delete);
        match network {
            None => {
                let name = attachment.target.to_string();
                return Err(ControlError::NotFound { kind: Kind::Network, name });
            }
            Some(network) if network.spec.ingress => {
                return Err(ControlError::AttachIngress(network.spec.name.clone()));
            }
            Some(_) => {}
        }
    }
    check_dependencies(state, spec)?;
    check_ports(state, &spec.endpoint.ports, own).map_err(ControlError::PortInUse)?;
    let needs_ingress = spec.endpoint.ports.iter().any(|port| port.mode == PublishMode::Ingress);
    if needs_ingress && state.ingress_network().is_none_or(|network| network.pending_delete) {
        return Err(ControlError::NoIngress);
    }
    Ok(())
}

/// A name for a service whose user gave none: an adjective, a name from the history of networks, as Docker does it.
pub fn random_service_name(taken: impl Fn(&str) -> bool) -> String {
    const LEFT: [&str; 24] = [
        "agile", "bold", "brisk", "calm", "clever", "crisp", "eager", "fair", "gentle", "glad", "keen",
        "kind", "lucid", "merry", "neat", "noble", "proud", "quick", "quiet", "sharp", "steady", "sunny",
        "vivid", "wise",
    ];
    const RIGHT: [&str; 24] = [
        "baran",
        "bellman",
        "cerf",
        "clark",
        "davies",
        "dijkstra",
        "floyd",
        "hopper",
        "jacobson",
        "kahn",
        "kleinrock",
        "lamport",
        "liskov",
        "lovelace",
        "maglev",
        "metcalfe",
        "nagle",
        "paxson",
        "perlman",
        "postel",
        "roberts",
        "shannon",
        "turing",
        "zimmermann",
    ];
    let pick = |words: &[&'static str; 24]| words[usize::from(rand::random::<u8>()) % words.len()];
    let plain = format!("{}_{}", pick(&LEFT), pick(&RIGHT));
    if taken(&plain) { format!("{plain}{}", rand::random::<u16>()) } else { plain }
}
