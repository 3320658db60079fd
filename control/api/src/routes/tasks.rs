//! Tasks: `docker service ps`, `docker node ps`.

use axum::extract::{Path, State};
use control_manager::control::TaskFilter;
use control_model::TaskState;

use crate::context::Api;
use crate::convert::task::task;
use crate::error::ApiError;
use crate::query::Query;
use crate::reply::{self, Reply, ok};

pub async fn list(State(api): State<Api>, query: Query) -> Reply {
    let control = api.control()?;
    let accepted = ["name", "id", "label", "service", "node", "desired-state", "_up-to-date", "runtime"];
    let filters = query.filters(&accepted)?;
    let filter = TaskFilter {
        id_prefixes: filters.get("id").to_vec(),
        name_prefixes: filters.get("name").to_vec(),
        services: filters.get("service").to_vec(),
        nodes: filters.get("node").to_vec(),
        desired_states: filters.get("desired-state").iter().map(|s| state_of(s)).collect::<Result<_, _>>()?,
        labels: filters.labels("label"),
        up_to_date: !filters.get("_up-to-date").is_empty(),
    };
    let mut tasks = control.list_tasks(&filter).await?;
    let runtimes = filters.get("runtime");
    if !runtimes.is_empty() && !runtimes.iter().any(|r| r == "container" || r.is_empty()) {
        tasks.clear();
    }
    let state = control.state();
    reply::list(tasks.into_iter().map(move |t| task(&state, &t)))
}

fn state_of(text: &str) -> Result<TaskState, ApiError> {
    let word = text.to_lowercase();
    let found = TaskState::ALL.into_iter().find(|state| state.as_str() == word);
    found.ok_or_else(|| ApiError::invalid(format!("Invalid desired-state filter: '{text}'")))
}

pub async fn inspect(State(api): State<Api>, Path(id): Path<String>) -> Reply {
    let control = api.control()?;
    let found = control.task(&id).await?;
    ok(&task(&control.state(), &found))
}
