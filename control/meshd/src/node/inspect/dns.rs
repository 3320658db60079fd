//! What `meshctl dns` shows: the DNS process tells what it serves, this daemon knows whose sandboxes these are.

use std::path::PathBuf;

use control_api::node::InspectError;
use dataplane_dns::inspect;
use dataplane_model::inspect::{DnsQueryReport, DnsZoneReport};
use dataplane_model::{NodeView, SandboxId};

use crate::host::Host;
use crate::node::swarm::Swarm;

/// `meshctl dns zone`.
pub async fn zone(
    host: &Host,
    swarm: Option<&Swarm>,
    task: Option<&str>,
    network: Option<&str>,
) -> Result<DnsZoneReport, InspectError> {
    let view = swarm.and_then(|swarm| swarm.views.borrow().clone());
    let sandbox = task.map(|task| find_sandbox(view.as_deref(), task)).transpose()?;
    let mut report =
        inspect::zone(&socket(host), sandbox.as_ref(), network).await.map_err(|error| failed(&error))?;
    for row in &mut report.sandboxes {
        let sandbox = view.as_ref().and_then(|view| view.sandboxes.get(&SandboxId(row.sandbox.clone())));
        row.task = sandbox.map(|sandbox| sandbox.task_name.clone()).unwrap_or_default();
    }
    Ok(report)
}

/// `meshctl dns query`.
pub async fn query(
    host: &Host,
    swarm: Option<&Swarm>,
    task: &str,
    (name, record_type): (&str, &str),
) -> Result<DnsQueryReport, InspectError> {
    let view = swarm.and_then(|swarm| swarm.views.borrow().clone());
    let sandbox = find_sandbox(view.as_deref(), task)?;
    inspect::query(&socket(host), &sandbox, name, record_type).await.map_err(|error| failed(&error))
}

/// The sandbox of the task with this name or id, or a part of one up to a dot or of the other.
pub fn find_sandbox(view: Option<&NodeView>, task: &str) -> Result<SandboxId, InspectError> {
    let view = view.ok_or_else(|| InspectError("this node has no tasks yet".to_owned()))?;
    let is_exact = |id: &SandboxId, name: &str| id.0 == task || name == task;
    let is_begun = |id: &SandboxId, name: &str| {
        id.0.starts_with(task) || name.strip_prefix(task).is_some_and(|rest| rest.starts_with('.'))
    };
    let with = |is_meant: &dyn Fn(&SandboxId, &str) -> bool| {
        let meant = view.sandboxes.iter().filter(|(id, sandbox)| is_meant(id, &sandbox.task_name));
        meant.map(|(id, sandbox)| (id.clone(), sandbox.task_name.clone())).collect::<Vec<_>>()
    };
    let exact = with(&is_exact);
    let found = if exact.is_empty() { with(&is_begun) } else { exact };
    match &found[..] {
        [(id, _)] => Ok(id.clone()),
        [] => Err(InspectError(format!("this node has no task with the name or id {task}"))),
        several => {
            let names: Vec<&str> = several.iter().map(|(_, name)| name.as_str()).collect();
            Err(InspectError(format!("{task} may be any of {}", names.join(", "))))
        }
    }
}

fn socket(host: &Host) -> PathBuf {
    host.config.run_dir.join("dns.sock")
}

fn failed(error: &inspect::InspectError) -> InspectError {
    let source = std::error::Error::source(error).map(|source| format!(": {source}"));
    InspectError(format!("{error}{}", source.unwrap_or_default()))
}

#[cfg(test)]
mod tests {

    use dataplane_model::{Generation, Sandbox, Table};

    use super::*;

    fn view(tasks: &[(&str, &str)]) -> NodeView {
        let sandbox = |name: &str| Sandbox {
            task_name: name.to_owned(),
            hostname: String::new(),
            attachments: Vec::new(),
            egress: false,
            host_ports: Vec::new(),
            dns_servers: Vec::new(),
            dns_options: Vec::new(),
        };
        let sandboxes = tasks.iter().map(|(id, name)| (SandboxId((*id).to_owned()), sandbox(name)));
        NodeView {
            revision: 1,
            generation: Generation::default(),
            vtep: std::net::Ipv4Addr::LOCALHOST.into(),
            vxlan_port: 4789,
            ingress: None,
            networks: Table::new(),
            sandboxes: sandboxes.collect(),
            remote_endpoints: Table::new(),
            services: Table::new(),
            peers: Table::new(),
        }
    }

    #[test]
    fn a_task_is_found_by_its_name_or_id_or_their_beginnings() {
        let view = view(&[("abc1", "web.1.abc1"), ("abd2", "web.2.abd2"), ("xyz3", "web.10.xyz3")]);
        let find = |task: &str| find_sandbox(Some(&view), task).map(|id| id.0).map_err(|error| error.0);
        for (task, id) in [("abc1", "abc1"), ("abc", "abc1"), ("web.1", "abc1"), ("web.10.xyz3", "xyz3")] {
            assert_eq!(find(task), Ok(id.to_owned()));
        }
        assert_eq!(find("web"), Err("web may be any of web.1.abc1, web.2.abd2, web.10.xyz3".to_owned()));
        assert_eq!(find("ab"), Err("ab may be any of web.1.abc1, web.2.abd2".to_owned()));
        assert_eq!(find("we"), Err("this node has no task with the name or id we".to_owned()));
        assert!(find_sandbox(None, "web").is_err());
    }
}
