//! Nodes, both ways.

use control_model::Node;
use control_model::spec::{Availability, NodeSpec, Role};

use super::words::Words;
use super::{generic, refuse_unknown};
use crate::dto::common::Rest;
use crate::dto::node as api;
use crate::dto::task as api_task;
use crate::error::ApiError;
use crate::node::RaftFacts;
use crate::tls::Roots;

/// The node; `raft` says who leads and who answers, `roots` what the node may have of them.
pub fn node(node: &Node, raft: &RaftFacts, roots: &Roots) -> api::Node {
    let description = &node.description;
    let plugin = |kind: &str, name: &str| api::PluginDescription { kind: kind.into(), name: name.into() };
    api::Node {
        id: node.id.to_string(),
        meta: (&node.meta).into(),
        spec: api::NodeSpec {
            name: node.spec.name.clone(),
            labels: node.spec.labels.clone(),
            role: node.spec.role.word().into(),
            availability: node.spec.availability.word().into(),
            rest: Rest::new(),
        },
        description: api::NodeDescription {
            hostname: description.hostname.clone(),
            platform: api_task::Platform {
                architecture: description.platform.architecture.clone(),
                os: description.platform.os.clone(),
            },
            resources: api_task::Resources {
                nano_cpus: description.resources.nano_cpus,
                memory_bytes: description.resources.memory_bytes,
                generic_resources: generic::shown(&description.generic),
                ..api_task::Resources::default()
            },
            engine: api::EngineDescription {
                engine_version: description.engine_version.clone(),
                labels: description.engine_labels.clone(),
                plugins: vec![plugin("Network", "overlay"), plugin("Volume", "local")],
            },
            tls_info: roots.held(description.tls),
        },
        status: api::NodeStatus {
            state: node.status.state.word(),
            message: node.status.message.clone(),
            addr: node.status.addr.map(|addr| addr.to_string()).unwrap_or_default(),
        },
        manager_status: node.manager.map(|manager| api::ManagerStatus {
            leader: raft.leader == Some(node.id),
            reachability: if raft.unreachable.contains(&node.id) { "unreachable" } else { "reachable" },
            addr: manager.addr.to_string(),
        }),
    }
}

/// The spec that `given` asks for (moby `daemon/cluster/convert/node.go`).
pub fn node_spec(given: api::NodeSpec) -> Result<NodeSpec, ApiError> {
    refuse_unknown(&given.rest, "NodeSpec")?;
    let role = Role::of_word(&given.role.to_lowercase())
        .ok_or_else(|| ApiError::invalid(format!("invalid Role: {:?}", given.role)))?;
    let availability = Availability::of_word(&given.availability.to_lowercase())
        .ok_or_else(|| ApiError::invalid(format!("invalid Availability: {:?}", given.availability)))?;
    Ok(NodeSpec { name: given.name, labels: given.labels, role, availability })
}

/// A role's word in a filter.
pub fn role_of(text: &str) -> Result<Role, ApiError> {
    Role::of_word(&text.to_lowercase())
        .ok_or_else(|| ApiError::invalid(format!("Invalid role filter: '{text}'")))
}

/// The availability that a node joins with; none given is active.
pub fn availability(text: &str) -> Result<Availability, ApiError> {
    match text {
        "" => Ok(Availability::Active),
        text => Availability::of_word(&text.to_lowercase())
            .ok_or_else(|| ApiError::invalid(format!("invalid Availability: {text:?}"))),
    }
}
