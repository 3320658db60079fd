//! `docker node …`.

use axum::extract::{Path, State};
use control_manager::control::{Control, ControlError, NodeFilter};

use crate::body::Json;
use crate::context::Api;
use crate::convert::node::{node, node_spec, role_of};
use crate::dto::node as api_node;
use crate::error::ApiError;
use crate::query::Query;
use crate::reply::{self, Reply, done, ok};
use crate::tls::Roots;

pub async fn list(State(api): State<Api>, query: Query) -> Reply {
    let control = api.control()?;
    let filters = query.filters(&["name", "id", "label", "role", "membership", "node.label"])?;
    let all_accepted = filters.get("membership");
    if let Some(other) = all_accepted.iter().find(|m| !matches!(m.as_str(), "accepted" | "pending" | "")) {
        return Err(ApiError::invalid(format!("Invalid membership filter: '{other}'")));
    }
    let filter = NodeFilter {
        id_prefixes: filters.get("id").to_vec(),
        name_prefixes: filters.get("name").to_vec(),
        engine_labels: filters.labels("label"),
        node_labels: filters.labels("node.label"),
        roles: filters.get("role").iter().map(|text| role_of(text)).collect::<Result<_, _>>()?,
    };
    let mut nodes = control.list_nodes(&filter).await?;
    // Every node of the list was accepted: nothing else is ever kept.
    if !all_accepted.is_empty() && !all_accepted.iter().any(|m| m == "accepted") {
        nodes.clear();
    }
    let (raft, roots) = (api.node.raft(), roots(&control)?);
    reply::list(nodes.into_iter().map(move |n| node(&n, &raft, &roots)))
}

fn roots(control: &Control) -> Result<Roots, ControlError> {
    control.state().cluster().map(|cluster| Roots::of(cluster)).ok_or(ControlError::NoCluster)
}

pub async fn inspect(State(api): State<Api>, Path(id): Path<String>) -> Reply {
    let control = api.control()?;
    let found = control.node(&id).await?;
    ok(&node(&found, &api.node.raft(), &roots(&control)?))
}

pub async fn update(
    State(api): State<Api>,
    Path(id): Path<String>,
    query: Query,
    Json(given): Json<api_node::NodeSpec>,
) -> Reply {
    let version = query.version("node")?;
    let (control, spec) = (api.control()?, node_spec(given)?);
    // With the read comes the leader's word of who does not answer it.
    control.node(&id).await?;
    control.update_node(&id, version, spec, &api.node.raft().unreachable).await?;
    done()
}

pub async fn remove(State(api): State<Api>, Path(id): Path<String>, query: Query) -> Reply {
    api.control()?.remove_node(&id, query.flag("force")).await?;
    done()
}
