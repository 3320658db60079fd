//! What `meshctl` reads: not Docker's, hence under a path of its own.

use axum::extract::State;
use axum::response::IntoResponse as _;
use dataplane_model::inspect::MAX_FLOWS_SHOWN;
use http::header;

use crate::context::Api;
use crate::error::ApiError;
use crate::query::Query;
use crate::reply::{Reply, ok};

/// Of the text format that Prometheus scrapes.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub async fn metrics(State(api): State<Api>) -> Reply {
    Ok(([(header::CONTENT_TYPE, METRICS_TYPE)], api.node.metrics().await?).into_response())
}

pub async fn status(State(api): State<Api>) -> Reply {
    ok(&api.node.mesh_status().await?)
}

pub async fn load_balancers(State(api): State<Api>) -> Reply {
    ok(&api.node.mesh_load_balancers().await?)
}

pub async fn rings(State(api): State<Api>, query: Query) -> Reply {
    let of = query.get("of");
    if of.is_empty() {
        return Err(ApiError::invalid("of must name a service, a frontend or a virtual address"));
    }
    ok(&api.node.mesh_rings(of).await?)
}

pub async fn flows(State(api): State<Api>, query: Query) -> Reply {
    let limit = query.get("limit").parse().ok().filter(|limit| *limit <= MAX_FLOWS_SHOWN);
    let limit =
        limit.ok_or_else(|| ApiError::invalid(format!("limit must be a number up to {MAX_FLOWS_SHOWN}")))?;
    ok(&api.node.mesh_flows(limit).await?)
}

pub async fn fdb(State(api): State<Api>) -> Reply {
    ok(&api.node.mesh_fdb().await?)
}

pub async fn verify(State(api): State<Api>) -> Reply {
    ok(&api.node.mesh_verify().await?)
}

pub async fn endpoints(State(api): State<Api>) -> Reply {
    ok(&api.node.mesh_endpoints().await?)
}

pub async fn drops(State(api): State<Api>) -> Reply {
    ok(&api.node.mesh_drops().await?)
}
