//! A service as the API shows it.

use std::net::Ipv4Addr;

use control_manager::control::ServiceStatus;
use control_model::object::{Endpoint, UpdateStatus};
use control_model::{NetworkId, Service};
use control_store::State;

use super::spec_out::{Defaults, endpoint_spec, port, service_spec};
use super::words::Words;
use crate::dto::common::{Time, Version};
use crate::dto::service as api;

/// The service; `status` where the caller asked for its counts.
pub fn service(
    state: &State,
    service: &Service,
    defaults: Defaults,
    status: Option<ServiceStatus>,
) -> api::Service {
    let previous = service.previous_spec.as_ref();
    api::Service {
        id: service.id.to_string(),
        meta: (&service.meta).into(),
        spec: service_spec(&service.spec, defaults),
        previous_spec: previous.map(|spec| service_spec(spec, Defaults::Omit)),
        endpoint: service.endpoint.as_ref().map(|e| endpoint(state, service, e)).unwrap_or_default(),
        update_status: service.update_status.as_ref().map(update_status),
        service_status: status.map(|status| api::ServiceStatus {
            running_tasks: status.running_tasks,
            desired_tasks: status.desired_tasks,
            completed_tasks: status.completed_tasks,
        }),
        job_status: service.job.map(|job| api::JobStatus {
            job_iteration: Version { index: job.iteration },
            last_execution: Time(Some(job.last_execution)),
        }),
    }
}

fn endpoint(state: &State, service: &Service, given: &Endpoint) -> api::Endpoint {
    let vip = |&(network, addr): &(NetworkId, Ipv4Addr)| api::VirtualIp {
        network_id: network.to_string(),
        addr: format!("{addr}/{}", prefix(state, network)),
    };
    api::Endpoint {
        spec: endpoint_spec(&service.spec.endpoint),
        ports: given.ports.iter().map(port).collect(),
        virtual_ips: given.vips.iter().map(vip).collect(),
    }
}

/// The network's prefix length; that of a single address if the network is gone.
fn prefix(state: &State, network: NetworkId) -> u8 {
    const SINGLE: u8 = 32;
    let network = state.networks().get(&network).and_then(|network| network.state.as_ref());
    network.and_then(|state| state.ipam.first()).map_or(SINGLE, |config| config.subnet.prefix())
}

fn update_status(status: &UpdateStatus) -> api::UpdateStatus {
    api::UpdateStatus {
        state: status.state.word().into(),
        started_at: Some(Time(Some(status.started_at))),
        completed_at: status.completed_at.map(|at| Time(Some(at))),
        message: status.message.clone(),
    }
}
