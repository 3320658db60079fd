//! Which handler answers which path.

mod absent;
mod archive;
mod backup;
mod cluster;
mod containers;
mod control;
mod dependencies;
mod disk;
mod events;
mod exec;
mod images;
mod logs;
mod mesh;
mod networks;
mod nodes;
mod own;
mod passed;
mod progress;
mod registry;
mod services;
mod standalone;
mod streams;
mod swarm;
mod system;
mod tasks;
mod volumes;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn;
use axum::routing::{delete, get, post};

use control_model::DependencyKind;

pub use cluster::{inspect, open};

use crate::body::drain;
use crate::context::Api;
use crate::error::ApiError;
use crate::node::Node;
use crate::stale::tell;
use crate::version::negotiate;

/// All routes over `node`, with and without a version before the path.
pub fn router(node: Arc<dyn Node>) -> Router {
    router_of(Api::new(node))
}

/// The same, of what others share.
pub fn router_of(api: Api) -> Router {
    let of_containers = if api.node.passage().is_some() {
        passed::routes()
    } else {
        node_local_routes().merge(joint_routes()).merge(absent::routes())
    };
    let routes = Router::new()
        .merge(system_routes())
        .merge(swarm_routes())
        .merge(
            DependencyKind::ALL
                .map(dependencies::routes)
                .into_iter()
                .reduce(Router::merge)
                .unwrap_or_default(),
        )
        .merge(of_containers)
        .fallback(page_not_found)
        .method_not_allowed_fallback(page_not_found)
        .layer(DefaultBodyLimit::disable())
        .with_state(api);
    // The version is taken off before the path is looked up, hence a router around the router.
    Router::new()
        .fallback_service(routes)
        .layer(from_fn(tell))
        .layer(from_fn(negotiate))
        .layer(from_fn(drain))
}

/// `/metrics` alone.
pub fn metrics_router(node: Arc<dyn Node>) -> Router {
    Router::new().route("/metrics", get(mesh::metrics)).fallback(page_not_found).with_state(Api::new(node))
}

fn system_routes() -> Router<Api> {
    Router::new()
        .route("/_ping", get(system::ping))
        .route("/version", get(system::version))
        .route("/metrics", get(mesh::metrics))
        .route("/mesh/backup", post(backup::take))
        .route("/mesh/restore", post(backup::restore))
        .route("/mesh/nodes", get(cluster::nodes))
        .route("/mesh/nodes/{of}/{*what}", get(cluster::ask))
        .merge(mesh_routes())
}

/// What a node tells of itself, also to a manager.
fn mesh_routes() -> Router<Api> {
    Router::new()
        .route("/mesh/status", get(mesh::status))
        .route("/mesh/lb", get(mesh::load_balancers))
        .route("/mesh/lb/ring", get(mesh::rings))
        .route("/mesh/lb/flows", get(mesh::flows))
        .route("/mesh/fdb", get(mesh::fdb))
        .route("/mesh/gossip", get(mesh::gossip))
        .route("/mesh/verify", get(mesh::verify))
        .route("/mesh/assigned", get(mesh::assigned))
        .route("/mesh/endpoints", get(mesh::endpoints))
        .route("/mesh/dns/zone", get(mesh::dns_zone))
        .route("/mesh/dns/query", get(mesh::dns_query))
        .route("/mesh/trace", get(mesh::trace))
        .route("/mesh/trace/live", get(mesh::trace_live))
        .route("/mesh/trace/mark", get(mesh::trace_mark))
        .route("/mesh/trace/marked", get(mesh::trace_marked))
        .route("/mesh/trace/tunnelled", get(mesh::trace_tunnelled))
        .route("/mesh/flows", get(mesh::samples))
        .route("/mesh/top", get(mesh::top))
        .route("/mesh/drops", get(mesh::drops))
}

/// The same, of answers that may go on for long.
fn long_routes() -> Router<Api> {
    Router::new().route("/mesh/logs", get(logs::of_this_node))
}

fn swarm_routes() -> Router<Api> {
    Router::new()
        .route("/swarm", get(swarm::inspect))
        .route("/swarm/init", post(swarm::init))
        .route("/swarm/join", post(swarm::join))
        .route("/swarm/leave", post(swarm::leave))
        .route("/swarm/update", post(swarm::update))
        .route("/swarm/unlockkey", get(swarm::unlock_key))
        .route("/swarm/unlock", post(swarm::unlock))
        .route("/nodes", get(nodes::list))
        .route("/nodes/{id}", get(nodes::inspect).delete(nodes::remove))
        .route("/nodes/{id}/update", post(nodes::update))
        .route("/services", get(services::list))
        .route("/services/create", post(services::create))
        .route("/services/{id}", get(services::inspect).delete(services::remove))
        .route("/services/{id}/update", post(services::update))
        .route("/services/{id}/logs", get(logs::of_service))
        .route("/tasks", get(tasks::list))
        .route("/tasks/{id}", get(tasks::inspect))
        .route("/tasks/{id}/logs", get(logs::of_task))
}

/// What an engine beside this daemon would have a part in.
fn joint_routes() -> Router<Api> {
    Router::new()
        .route("/info", get(system::info))
        .route("/events", get(events::follow))
        .route("/networks", get(networks::list))
        .route("/networks/create", post(networks::create))
        .route("/networks/{id}", get(networks::inspect).delete(networks::remove))
        .route("/networks/{id}/connect", post(networks::connect))
        .route("/networks/prune", post(disk::prune_networks))
}

fn node_local_routes() -> Router<Api> {
    Router::new()
        .route("/auth", post(registry::login))
        .route("/images/json", get(images::list))
        .route("/images/create", post(images::create))
        .route("/images/load", post(images::load))
        .route("/images/{*path}", get(images::get).post(images::post).merge(delete(images::remove)))
        .route("/distribution/{*path}", get(images::distribution))
        .route("/system/df", get(disk::usage))
        .route("/images/prune", post(disk::prune_images))
        .route("/containers/prune", post(disk::prune_containers))
        .route("/build/prune", post(disk::prune_build_cache))
        .route("/volumes", get(volumes::list))
        .route("/volumes/create", post(volumes::create))
        .route("/volumes/prune", post(volumes::prune))
        .route("/volumes/{name}", get(volumes::inspect).delete(volumes::remove))
        .route("/containers/json", get(containers::list))
        .route("/containers/create", post(standalone::create))
        .route("/containers/{id}", delete(standalone::remove))
        .route("/containers/{id}/start", post(standalone::start))
        .route("/containers/{id}/restart", post(standalone::restart))
        .route("/containers/{id}/rename", post(standalone::rename))
        .route("/containers/{id}/update", post(standalone::update))
        .route("/containers/{id}/wait", post(standalone::wait))
        .route("/containers/{id}/attach", post(standalone::attach))
        .route("/containers/{id}/resize", post(standalone::resize))
        .route("/containers/{id}/json", get(containers::inspect))
        .route("/containers/{id}/logs", get(logs::of_container))
        .route("/containers/{id}/archive", get(archive::get).head(archive::stat).put(archive::put))
        .route("/containers/{id}/kill", post(control::kill))
        .route("/containers/{id}/stop", post(control::stop))
        .route("/containers/{id}/top", get(control::top))
        .route("/containers/{id}/stats", get(control::stats))
        .route("/containers/{id}/exec", post(exec::create))
        .route("/exec/{id}/start", post(exec::start))
        .route("/exec/{id}/resize", post(exec::resize))
        .route("/exec/{id}/json", get(exec::inspect))
}

async fn page_not_found() -> ApiError {
    ApiError::not_found("page not found")
}
