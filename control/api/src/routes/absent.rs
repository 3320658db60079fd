//! Docker's other paths. Those that `docker inspect` and lists probe answer that there is nothing; those that would
//! do something say that this daemon does not.

use axum::Router;
use axum::extract::Path;
use axum::routing::{any, get};
use http::{Method, Uri};

use crate::context::Api;
use crate::error::ApiError;
use crate::reply::{Reply, ok};

/// The routes.
pub fn routes() -> Router<Api> {
    let router = Router::new().route("/plugins", get(nothing)).route("/plugins/{name}/json", get(no_plugin));
    UNSUPPORTED.iter().fold(router, |router, path| router.route(path, any(refuse)))
}

/// Paths of Docker's API that are refused whatever the method.
const UNSUPPORTED: &[&str] = &[
    "/build",
    "/build/{*rest}",
    "/commit",
    "/containers/{id}/{action}",
    "/networks/{id}/{action}",
    "/plugins/{name}/{action}",
    "/session",
];

async fn refuse(method: Method, uri: Uri) -> ApiError {
    unsupported(&method, &uri)
}

/// This daemon does not have it.
pub fn unsupported(method: &Method, uri: &Uri) -> ApiError {
    ApiError::unsupported(format!("{method} {}", uri.path()))
}

async fn nothing() -> Reply {
    ok(&serde_json::json!([]))
}

async fn no_plugin(Path(name): Path<String>) -> ApiError {
    ApiError::not_found(format!("plugin \"{name}\" not found"))
}
