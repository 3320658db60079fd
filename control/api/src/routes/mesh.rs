//! What `meshctl` reads: not Docker's, hence under a path of its own.

use std::str::FromStr;

use axum::extract::State;
use axum::response::IntoResponse as _;
use dataplane_model::inspect::{MAX_FLOWS_SHOWN, TraceRequest, TunnelledPacket};
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

pub async fn gossip(State(api): State<Api>) -> Reply {
    ok(&api.node.mesh_gossip().await?)
}

pub async fn verify(State(api): State<Api>) -> Reply {
    ok(&api.node.mesh_verify().await?)
}

pub async fn assigned(State(api): State<Api>) -> Reply {
    ok(&api.node.mesh_assigned().await?)
}

pub async fn endpoints(State(api): State<Api>) -> Reply {
    ok(&api.node.mesh_endpoints().await?)
}

pub async fn drops(State(api): State<Api>) -> Reply {
    ok(&api.node.mesh_drops().await?)
}

pub async fn top(State(api): State<Api>) -> Reply {
    ok(&api.node.mesh_top().await?)
}

pub async fn samples(State(api): State<Api>, query: Query) -> Reply {
    let every = number(&query, "every")?;
    if every == 0 {
        return Err(ApiError::invalid("every must be at least 1"));
    }
    ok(&api.node.mesh_samples(every).await?)
}

pub async fn dns_zone(State(api): State<Api>, query: Query) -> Reply {
    ok(&api.node.mesh_dns_zone(query.given("task"), query.given("network")).await?)
}

pub async fn dns_query(State(api): State<Api>, query: Query) -> Reply {
    let (Some(task), Some(name)) = (query.given("task"), query.given("name")) else {
        return Err(ApiError::invalid("task must name a task, and name what it asks for"));
    };
    ok(&api.node.mesh_dns_query(task, name, query.given("type").unwrap_or("A")).await?)
}

pub async fn trace(State(api): State<Api>, query: Query) -> Reply {
    ok(&api.node.mesh_trace(&trace_request(&query)?).await?)
}

pub async fn trace_live(State(api): State<Api>, query: Query) -> Reply {
    ok(&api.node.mesh_trace_live(&trace_request(&query)?).await?)
}

pub async fn trace_mark(State(api): State<Api>, query: Query) -> Reply {
    ok(&api.node.mesh_trace_mark(number(&query, "protocol")?, number(&query, "port")?).await?)
}

pub async fn trace_tunnelled(State(api): State<Api>, query: Query) -> Reply {
    ok(&api.node.mesh_trace_tunnelled(&tunnelled(&query)?).await?)
}

pub async fn trace_marked(State(api): State<Api>, query: Query) -> Reply {
    ok(&api.node.mesh_trace_marked(&tunnelled(&query)?).await?)
}

fn trace_request(query: &Query) -> Result<TraceRequest, ApiError> {
    let (Some(from), Some(to)) = (query.given("from"), query.given("to")) else {
        return Err(ApiError::invalid("from and to must say between what"));
    };
    let (protocol, port) = (number(query, "protocol")?, number(query, "port")?);
    let ipv6 = query.given("ipv6").is_some() && number(query, "ipv6")?;
    Ok(TraceRequest { from: from.to_owned(), to: to.to_owned(), protocol, port, ipv6 })
}

fn tunnelled(query: &Query) -> Result<TunnelledPacket, ApiError> {
    Ok(TunnelledPacket {
        from: number(query, "from")?,
        to: number(query, "to")?,
        vni: number(query, "vni")?,
        endpoint: number(query, "endpoint")?,
        source: number(query, "source")?,
        destination: number(query, "destination")?,
        protocol: number(query, "protocol")?,
    })
}

/// A number, address or socket address, or `true` or `false`.
fn number<T: FromStr>(query: &Query, name: &str) -> Result<T, ApiError> {
    let text = query.get(name);
    text.parse().map_err(|_| ApiError::invalid(format!("invalid value for {name}: {text}")))
}
