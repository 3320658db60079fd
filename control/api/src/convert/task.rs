//! A task as the API shows it.

use control_model::object::{NetworkAttachment, Slot, TaskStatus};
use control_model::spec::{Labels, PublishMode};
use control_model::{Task, TaskState};
use control_store::State;

use super::generic;
use super::network::attached_network;
use super::spec_out::{Defaults, port, task_spec};
use crate::dto::common::{Time, Version};
use crate::dto::task as api;

/// The task.
pub fn task(state: &State, task: &Task) -> api::Task {
    api::Task {
        id: task.id.to_string(),
        meta: (&task.meta).into(),
        labels: Labels::new(),
        spec: task_spec(&task.spec, Defaults::Omit),
        service_id: task.service.to_string(),
        slot: match task.slot {
            Slot::Replica(number) => number,
            Slot::Node(_) => 0,
        },
        node_id: task.node.map(|node| node.to_string()).unwrap_or_default(),
        status: status(task, &task.status),
        desired_state: task.desired_state.as_str(),
        job_iteration: task.job_iteration.map(|index| Version { index }),
        networks_attachments: task.attachments.iter().filter_map(|a| attachment(state, a)).collect(),
        generic_resources: generic::shown(&task.generic),
        volumes: None,
    }
}

fn status(task: &Task, status: &TaskStatus) -> api::TaskStatus {
    let container = status.container.as_ref().map(|container| api::ContainerStatus {
        container_id: container.container_id.clone(),
        pid: container.pid,
        exit_code: container.exit_code,
    });
    let open =
        |task: &&control_model::spec::PortConfig| task.mode == PublishMode::Host && task.published != 0;
    let ports = match status.state {
        TaskState::Running => task.ports.iter().filter(open).map(port).collect(),
        _ => Vec::new(),
    };
    api::TaskStatus {
        timestamp: Time(Some(status.at)),
        state: status.state.as_str(),
        message: status.message.clone(),
        err: status.error.clone(),
        container_status: container,
        port_status: api::PortStatus { ports },
    }
}

fn attachment(state: &State, attachment: &NetworkAttachment) -> Option<api::NetworkAttachment> {
    let network = state.networks().get(&attachment.network)?;
    let ipv6 = network.address6(attachment).map(|address| address.to_string());
    Some(api::NetworkAttachment {
        network: attached_network(network),
        addresses: [attachment.address.to_string()].into_iter().chain(ipv6).collect(),
    })
}
