//! What `meshctl` reads: not Docker's, hence under a path of its own.

use axum::extract::State;

use crate::context::Api;
use crate::reply::{Reply, ok};

pub async fn status(State(api): State<Api>) -> Reply {
    ok(&api.node.mesh_status().await?)
}

pub async fn load_balancers(State(api): State<Api>) -> Reply {
    ok(&api.node.mesh_load_balancers().await?)
}

pub async fn endpoints(State(api): State<Api>) -> Reply {
    ok(&api.node.mesh_endpoints().await?)
}

pub async fn drops(State(api): State<Api>) -> Reply {
    ok(&api.node.mesh_drops().await?)
}
