//! Inspection of other nodes, through the managers; and of this one, when a manager asks.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::IntoResponse as _;
use control_model::Node as Member;
use dataplane_model::inspect::NodeRow;
use http::{Request, Uri, header};
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

use super::{long_routes, mesh_routes, page_not_found};
use crate::context::Api;
use crate::error::ApiError;
use crate::node::{InspectError, LongAnswer, Node};
use crate::reply::{Reply, ok};

/// The nodes of the cluster, by name, as this manager's replica has them: also without a quorum.
pub async fn nodes(State(api): State<Api>) -> Reply {
    let state = state(&api)?;
    let mut rows: Vec<NodeRow> = state.nodes().iter().map(|node| row(node)).collect();
    rows.sort_by(|a, b| (&a.hostname, &a.node_id).cmp(&(&b.hostname, &b.node_id)));
    ok(&rows)
}

/// What one node answers to the rest of the path.
pub async fn ask(State(api): State<Api>, Path((of, what)): Path<(String, String)>, uri: Uri) -> Reply {
    let node = find(&*state(&api)?, &of)?;
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let answer = api.node.mesh_ask(node, &format!("/mesh/{what}{query}")).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], answer).into_response())
}

fn state(api: &Api) -> Result<Arc<control_store::State>, ApiError> {
    let store = api.node.store().ok_or_else(|| {
        ApiError::unavailable(
            "this node is no manager, and only managers may ask other nodes: ask on a manager",
        )
    })?;
    Ok(store.state())
}

fn row(node: &Member) -> NodeRow {
    NodeRow {
        hostname: node.description.hostname.clone(),
        node_id: node.id.to_string(),
        vtep: node.description.data_path_addr,
    }
}

/// By id, host name, tunnel end, or the beginning of an id.
fn find(state: &control_store::State, of: &str) -> Result<control_model::NodeId, ApiError> {
    let with = |is_it: &dyn Fn(&NodeRow) -> bool| {
        let nodes = state.nodes().iter().filter(|node| is_it(&row(node)));
        nodes.map(|node| node.id).collect::<Vec<_>>()
    };
    let is_named = |row: &NodeRow| {
        row.node_id == of || row.hostname == of || row.vtep.is_some_and(|vtep| vtep.to_string() == of)
    };
    let named = with(&is_named);
    let found = if named.is_empty() { with(&|row| row.node_id.starts_with(of)) } else { named };
    match found[..] {
        [node] => Ok(node),
        [] => Err(ApiError::not_found(format!("no node has the name, id or tunnel end {of}"))),
        _ => Err(ApiError::invalid(format!("{of} may be any of {} nodes: give an id", found.len()))),
    }
}

/// What `node` answers to a path and query of the inspection API that a manager asks for: of itself alone.
pub async fn inspect(node: Arc<dyn Node>, question: &str) -> Result<Vec<u8>, String> {
    let body = answer(node, mesh_routes(), question).await?.collect().await;
    Ok(body.map_err(|error| error.to_string())?.to_bytes().to_vec())
}

/// The same of an answer that may go on for long.
pub async fn open(node: Arc<dyn Node>, question: &str) -> Result<LongAnswer, String> {
    let pieces = answer(node, long_routes(), question).await?.into_data_stream();
    let said = |piece: Result<_, axum::Error>| piece.map_err(|error| InspectError(error.to_string()));
    Ok(futures::StreamExt::boxed(futures::StreamExt::map(pieces, said)))
}

async fn answer(node: Arc<dyn Node>, routes: Router<Api>, question: &str) -> Result<Body, String> {
    let request = Request::get(question).body(Body::empty()).map_err(|error| error.to_string())?;
    let routes: Router = routes.fallback(page_not_found).with_state(Api::new(node));
    let reply = routes.oneshot(request).await.unwrap_or_else(|never| match never {});
    if reply.status().is_success() {
        return Ok(reply.into_body());
    }
    let body = reply.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
    let refusal: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    Err(refusal["message"].as_str().unwrap_or("it refuses, and does not say why").to_owned())
}
