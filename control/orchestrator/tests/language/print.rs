//! What scenarios print.

use std::collections::BTreeMap;
use std::fmt::Write;

use control_model::object::{Slot, UpdateState};
use control_model::spec::ServiceMode;
use control_model::{NodeId, Task, TaskState};
use control_store::State;

/// `service.slot`, a node's name for a global service's slot.
pub fn name(state: &State, task: &Task) -> String {
    let slot = match task.slot {
        Slot::Replica(slot) => slot.to_string(),
        Slot::Node(id) => node_name(state, Some(id)),
    };
    format!("{}.{slot}", task.service_name)
}

fn node_name(state: &State, id: Option<NodeId>) -> String {
    let Some(id) = id else { return "-".into() };
    state.nodes().get(&id).map_or_else(|| "(removed)".into(), |node| node.description.hostname.clone())
}

/// All tasks, by slot, the newest first: name, image, node, desired state, state, error.
pub fn ps(state: &State, service: &str, output: &mut String) {
    let mut tasks: Vec<_> = state.tasks().iter().filter(|task| task.service_name == service).collect();
    tasks.sort_by_key(|t| (name(state, t), std::cmp::Reverse(t.meta.created_at), t.desired_state, t.id));
    for task in tasks {
        let (name, node) = (name(state, task), node_name(state, task.node));
        let (desired, has) = (task.desired_state.as_str(), task.status.state.as_str());
        let image = &task.spec.container.image;
        let error = &task.status.error;
        let line = format!("{name:<8} {image:<6} {node:<9} {desired:<8} {has:<9} {error}");
        writeln!(output, "{}", line.trim_end()).expect("a string");
    }
}

/// How many tasks there are of a service, in whatever state.
pub fn count(state: &State, name: &str, output: &mut String) {
    let service = state.service_by_name(name).map(|service| service.id);
    let n_tasks = service.map_or(0, |service| state.tasks_of_service(service).count());
    writeln!(output, "{n_tasks}").expect("a text");
}

/// Running and wanted tasks of each service.
pub fn ls(state: &State, output: &mut String) {
    let mut services: Vec<_> = state.services().iter().collect();
    services.sort_by_key(|service| &service.spec.name);
    for service in services {
        let runs = |t: &&std::sync::Arc<Task>| {
            t.status.state == TaskState::Running && t.desired_state <= TaskState::Complete
        };
        let n_running = state.tasks_of_service(service.id).filter(runs).count();
        let n_complete = || {
            let of_run = |t: &&std::sync::Arc<Task>| t.job_iteration == service.job_iteration();
            let done = |t: &std::sync::Arc<Task>| t.status.state == TaskState::Complete;
            state.tasks_of_service(service.id).filter(of_run).filter(|task| done(task)).count()
        };
        let n_wanted = match service.spec.mode {
            ServiceMode::Replicated { replicas } => replicas.to_string(),
            ServiceMode::Global => "global".into(),
            ServiceMode::ReplicatedJob { max_concurrent, total_completions } => {
                format!("{max_concurrent} ({}/{total_completions} completed)", n_complete())
            }
            ServiceMode::GlobalJob => format!("global ({} completed)", n_complete()),
        };
        writeln!(output, "{} {n_running}/{n_wanted}", service.spec.name).expect("a string");
    }
}

/// State and message of the update; ids of tasks as their names.
pub fn status(state: &State, service: &str, output: &mut String) {
    let service = state.service_by_name(service).expect("a service");
    let Some(status) = &service.update_status else { return output.push_str("none\n") };
    let mut message = status.message.clone();
    for task in state.tasks_of_service(service.id) {
        message = message.replace(&task.id.to_string(), &name(state, task));
    }
    let word = match status.state {
        UpdateState::Updating => "updating",
        UpdateState::Paused => "paused",
        UpdateState::Completed => "completed",
        UpdateState::RollbackStarted => "rollback_started",
        UpdateState::RollbackPaused => "rollback_paused",
        UpdateState::RollbackCompleted => "rollback_completed",
    };
    let done = if status.completed_at.is_some() { " (ended)" } else { "" };
    writeln!(output, "{word}: {message}{done}").expect("a string");
}

/// How many wanted tasks of the service each node has.
pub fn spread(state: &State, service: &str, output: &mut String) {
    let service = state.service_by_name(service).expect("a service");
    let mut counts: BTreeMap<String, usize> =
        state.nodes().iter().map(|node| (node.description.hostname.clone(), 0)).collect();
    for task in state.tasks_of_service(service.id).filter(|t| t.desired_state <= TaskState::Complete) {
        *counts.entry(node_name(state, task.node)).or_default() += 1;
    }
    let words: Vec<String> = counts.into_iter().map(|(node, n)| format!("{node}={n}")).collect();
    writeln!(output, "{}", words.join(" ")).expect("a string");
}

/// Name, VNI and subnets of each network.
/// What each of its tasks that run gets of its share.
pub fn weights(state: &State, service: &str, output: &mut String) {
    let service = state.service_by_name(service).expect("a service");
    let running = state.tasks_of_service(service.id).filter(|task| task.status.state == TaskState::Running);
    let mut tasks: Vec<String> =
        running.map(|task| format!("{}={}", name(state, task), task.weight)).collect();
    tasks.sort();
    writeln!(output, "{}", tasks.join(" ")).expect("a string");
}

pub fn networks(state: &State, output: &mut String) {
    let mut networks: Vec<_> = state.networks().iter().collect();
    networks.sort_by_key(|network| network.state.as_ref().map(|s| s.vni));
    for network in networks {
        let name = &network.spec.name;
        let Some(given) = &network.state else {
            writeln!(output, "{name} -").expect("a string");
            continue;
        };
        let subnets: Vec<String> = given
            .ipam
            .iter()
            .map(|ipam| format!("{} via {}", ipam.subnet, ipam.gateway.expect("a gateway")))
            .collect();
        writeln!(output, "{name} {} {}", given.vni, subnets.join(", ")).expect("a string");
    }
}

/// VIPs and ports of a service, and the addresses of its tasks that have not ended.
pub fn endpoint(state: &State, service: &str, output: &mut String) {
    let service = state.service_by_name(service).expect("a service");
    let network = |id| &state.networks().get(id).expect("a network").spec.name;
    if service.endpoint.is_none() {
        output.push_str("nothing allocated\n");
    }
    let endpoint = service.endpoint.clone().unwrap_or_default();
    for (id, vip) in &endpoint.vips {
        writeln!(output, "vip {} {vip}", network(id)).expect("a string");
    }
    for port in &endpoint.ports {
        writeln!(output, "port {}->{}", port.published, port.target).expect("a string");
    }
    let mut lines: Vec<String> = Vec::new();
    for task in state.tasks_of_service(service.id).filter(|t| !t.status.state.is_terminal()) {
        let has = task.attachments.iter().map(|a| format!(" {} {}", network(&a.network), a.address));
        let error =
            if task.status.error.is_empty() { String::new() } else { format!(" ({})", task.status.error) };
        lines.push(format!("{}{}{error}", name(state, task), has.collect::<String>()));
    }
    lines.sort();
    for line in lines {
        writeln!(output, "{line}").expect("a string");
    }
}

/// How many tasks run and how many are to come, by image.
pub fn picture(state: &State, service: &str) -> String {
    let service = state.service_by_name(service).expect("a service");
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for task in state.tasks_of_service(service.id) {
        let (running, coming) = counts.entry(&task.spec.container.image).or_default();
        if task.status.state == TaskState::Running && task.desired_state <= TaskState::Complete {
            *running += 1;
        } else if task.desired_state <= TaskState::Complete && !task.status.state.is_terminal() {
            *coming += 1;
        }
    }
    let counts = counts.into_iter().filter(|(_, counts)| *counts != (0, 0));
    let words: Vec<String> =
        counts.map(|(image, (running, coming))| format!("{image}: {running} run, {coming} come")).collect();
    if words.is_empty() { "none".into() } else { words.join("; ") }
}
