//! `docker kill`, `stop`, `top` and `stats` of this node's containers.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::response::IntoResponse as _;
use control_manager::clock;
use control_model::Timestamp;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::containers::find;
use super::standalone::grace;
use crate::context::Api;
use crate::dto::common::rfc3339;
use crate::dto::stats::{
    BlkioEntry, BlkioStats, CpuStats, CpuUsage, MemoryStats, NetworkStats, PidsStats, Stats, Throttling, Top,
};
use crate::engine::{Container, EngineError, InterfaceUsage, LocalEngine, Usage};
use crate::error::ApiError;
use crate::query::Query;
use crate::reply::{Reply, ok};

/// Docker looks so often.
const PERIOD: Duration = Duration::from_secs(1);

pub async fn kill(State(api): State<Api>, Path(term): Path<String>, query: Query) -> Reply {
    let signal = query.given("signal").unwrap_or("SIGKILL");
    let container = known(&api, &term).await?;
    api.local_engine()?.kill(&container.id, signal).await.map_err(|error| match error {
        EngineError::Conflict(words) => {
            EngineError::Conflict(format!("cannot kill container: {term}: {words}"))
        }
        other => other,
    })?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// A task's container is stopped for its cluster to see: what takes its place is the orchestrator's to say.
pub async fn stop(State(api): State<Api>, Path(term): Path<String>, query: Query) -> Reply {
    let grace = grace(&query)?;
    let signal = query.given("signal").map(str::to_owned);
    let container = known(&api, &term).await?;
    let engine = api.local_engine()?;
    // What has begun goes to its end, also if the client does not wait for it.
    let stopping = tokio::spawn(async move { engine.stop(&container.id, signal.as_deref(), grace).await });
    let did_run = stopping.await.map_err(|error| EngineError::Failed(error.to_string()))??;
    Ok(if did_run { StatusCode::NO_CONTENT } else { StatusCode::NOT_MODIFIED }.into_response())
}

pub async fn top(State(api): State<Api>, Path(term): Path<String>, query: Query) -> Reply {
    let container = known(&api, &term).await?;
    let given = query.given("ps_args").unwrap_or("-ef");
    let arguments: Vec<String> = given.split_whitespace().map(str::to_owned).collect();
    let table = api.local_engine()?.top(&container.id, &arguments).await?;
    ok(&Top { titles: table.titles, processes: table.rows })
}

/// One look, or one a second until the container has ended. The first has one before it to compare with, unless it is to come at
/// once.
pub async fn stats(State(api): State<Api>, Path(term): Path<String>, query: Query) -> Reply {
    let container = known(&api, &term).await?;
    let is_stream = query.get("stream").is_empty() || query.flag("stream");
    let (lines, stream) = mpsc::channel::<Result<Bytes, std::convert::Infallible>>(1);
    let looking = Looking { engine: api.local_engine()?, container, before: None };
    let is_one_shot = query.flag("one-shot");
    tokio::spawn(looking.run(is_stream, is_one_shot, lines));
    Ok(([(CONTENT_TYPE, "application/json")], Body::from_stream(ReceiverStream::new(stream))).into_response())
}

struct Looking {
    engine: Arc<dyn LocalEngine>,
    container: Container,
    /// What was seen last, and when.
    before: Option<(Timestamp, Usage)>,
}

impl Looking {
    async fn run(
        mut self,
        is_stream: bool,
        is_one_shot: bool,
        lines: mpsc::Sender<Result<Bytes, std::convert::Infallible>>,
    ) {
        if !is_stream && !is_one_shot {
            self.look().await;
            tokio::time::sleep(PERIOD).await;
        }
        loop {
            let stats = self.look().await;
            let is_over = stats.cpu_stats.system_cpu_usage == 0;
            let mut line = serde_json::to_vec(&stats).expect("text and numbers");
            line.push(b'\n');
            if lines.send(Ok(line.into())).await.is_err() || !is_stream || is_over {
                return;
            }
            tokio::select! {
                () = lines.closed() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
    }

    /// All is 0 of one that does not run.
    async fn look(&mut self) -> Stats {
        let usage = match self.engine.usage(&self.container.id).await {
            Ok(usage) => usage,
            Err(error) => {
                tracing::debug!(container = self.container.id, %error, "nothing to look at");
                Usage::default()
            }
        };
        let now = clock::now();
        let before = self.before.replace((now, usage.clone()));
        shown(&self.container, (now, &usage), before.as_ref())
    }
}

fn shown(
    container: &Container,
    (now, usage): (Timestamp, &Usage),
    before: Option<&(Timestamp, Usage)>,
) -> Stats {
    let io = usage.io.iter().flat_map(|(&(major, minor), &(read, written))| {
        [("read", read), ("write", written)].map(|(op, value)| BlkioEntry { major, minor, op, value })
    });
    Stats {
        name: format!("/{}", container.name),
        id: container.id.clone(),
        read: rfc3339(Some(now)),
        preread: rfc3339(before.map(|(at, _)| *at)),
        pids_stats: PidsStats { current: usage.n_pids, limit: usage.pids_limit.unwrap_or(0) },
        blkio_stats: BlkioStats { io_service_bytes_recursive: io.collect() },
        num_procs: 0,
        cpu_stats: cpu(usage),
        precpu_stats: before.map(|(_, usage)| cpu(usage)).unwrap_or_default(),
        memory_stats: MemoryStats {
            usage: usage.memory_bytes,
            limit: usage.memory_limit_bytes,
            stats: usage.memory_parts.clone(),
        },
        networks: usage.interfaces.iter().map(|(name, one)| (name.clone(), network(*one))).collect(),
    }
}

fn cpu(usage: &Usage) -> CpuStats {
    let cpu = usage.cpu;
    CpuStats {
        cpu_usage: CpuUsage {
            total_usage: cpu.total_ns,
            usage_in_kernelmode: cpu.kernel_ns,
            usage_in_usermode: cpu.user_ns,
        },
        system_cpu_usage: cpu.host_ns,
        online_cpus: cpu.n_cpus,
        throttling_data: Throttling {
            periods: cpu.n_periods,
            throttled_periods: cpu.n_throttled,
            throttled_time: cpu.throttled_ns,
        },
    }
}

fn network(usage: InterfaceUsage) -> NetworkStats {
    NetworkStats {
        rx_bytes: usage.rx_bytes,
        rx_packets: usage.rx_packets,
        rx_errors: usage.rx_errors,
        rx_dropped: usage.rx_dropped,
        tx_bytes: usage.tx_bytes,
        tx_packets: usage.tx_packets,
        tx_errors: usage.tx_errors,
        tx_dropped: usage.tx_dropped,
    }
}

async fn known(api: &Api, term: &str) -> Result<Container, ApiError> {
    let containers = api.local_engine()?.containers().await?;
    find(&containers, term).cloned()
}
