//! Tasks: list and look up. Users never write them.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use control_model::{NodeId, Service, ServiceId, Task, TaskState};
use control_orchestrator::is_task_dirty;
use control_store::State;

use super::error::{ControlError, Kind};
use super::lookup::{LabelFilter, find, labels_match, starts_with_any};
use super::{Control, nodes, services};

/// Which tasks a list shows. Values of one field are alternatives, fields are all needed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskFilter {
    pub id_prefixes: Vec<String>,
    pub name_prefixes: Vec<String>,
    /// Names or ids.
    pub services: Vec<String>,
    /// Names or ids.
    pub nodes: Vec<String>,
    pub desired_states: Vec<TaskState>,
    /// Labels of the task's service.
    pub labels: LabelFilter,
    /// Only tasks that are as their service wants them now.
    pub up_to_date: bool,
}

impl Control {
    /// The tasks that `filter` lets through, by id.
    pub async fn list_tasks(&self, filter: &TaskFilter) -> Result<Vec<Arc<Task>>, ControlError> {
        let state = self.read().await?;
        let wanted: BTreeSet<ServiceId> = (filter.services.iter())
            .map(|name| services::find_service(&state, name).map(|s| s.id))
            .collect::<Result<_, _>>()?;
        let on: BTreeSet<NodeId> = (filter.nodes.iter())
            .map(|name| nodes::find_node(&state, name).map(|n| n.id))
            .collect::<Result<_, _>>()?;
        let candidates: Vec<&Arc<Task>> = if !wanted.is_empty() {
            wanted.iter().flat_map(|id| state.tasks_of_service(*id)).collect()
        } else if !on.is_empty() {
            on.iter().flat_map(|id| state.tasks_of_node(*id)).collect()
        } else {
            state.tasks().iter().collect()
        };
        let kept = candidates.into_iter().filter(|task| {
            !task.is_attachment()
                && (on.is_empty() || task.node.is_some_and(|node| on.contains(&node)))
                && matches_itself(filter, task)
                && matches_service(filter, &state, task)
        });
        Ok(kept.cloned().collect())
    }

    /// The task that `input` names: id, task name, or beginning of an id.
    pub async fn task(&self, input: &str) -> Result<Arc<Task>, ControlError> {
        let state = self.read().await?;
        let tasks = || state.tasks().iter().map(|task| (task.id, task));
        find(Kind::Task, input, |id| state.tasks().get(&id), tasks, |t| Cow::Owned(task_name(t))).cloned()
    }
}

fn matches_itself(filter: &TaskFilter, task: &Task) -> bool {
    starts_with_any(&task.id.to_string(), &filter.id_prefixes)
        && starts_with_any(&task_name(task), &filter.name_prefixes)
        && (filter.desired_states.is_empty() || filter.desired_states.contains(&task.desired_state))
}

fn matches_service(filter: &TaskFilter, state: &State, task: &Task) -> bool {
    if filter.labels.is_empty() && !filter.up_to_date {
        return true;
    }
    state.services().get(&task.service).is_some_and(|service| {
        labels_match(&service.spec.labels, &filter.labels)
            && (!filter.up_to_date || !is_dirty(state, service, task))
    })
}

/// Whether `service` wants another task than this one in its place.
fn is_dirty(state: &State, service: &Service, task: &Task) -> bool {
    let node = task.node.and_then(|id| state.nodes().get(&id));
    is_task_dirty(service, task, node.map(|node| &**node))
}

/// `<service>.<slot>.<id>`, or `<service>.<node id>.<id>` for a global service (swarmkit `api/naming`).
pub fn task_name(task: &Task) -> String {
    task.name()
}
