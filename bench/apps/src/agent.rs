//! One on every node: says which.

use anyhow::Result;
use axum::Router;
use axum::routing::get;

use crate::{server, variable};

pub async fn serve() -> Result<()> {
    server::serve(Router::new().route("/", get(async || format!("node: {}\n", variable("NODE", "?"))))).await
}
