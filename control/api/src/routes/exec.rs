//! `docker exec`: a further process in a container of this node, on a connection that becomes its streams.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{FromRequest as _, Path, Request, State};
use axum::response::IntoResponse as _;
use control_manager::clock;
use futures::future::BoxFuture;
use http::{StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::containers::find;
use super::logs::stream_kind;
use super::streams::{Connection, Streams, switching, wants_upgrade};
use crate::body::Json;
use crate::context::Api;
use crate::dto::exec::{ExecConfig, ExecCreated, ExecInspect, ExecStart, ProcessConfig};
use crate::engine::{ExecRequest, Process};
use crate::error::ApiError;
use crate::events::{actor_of, of_exec};
use crate::execs::{Exec, Stage};
use crate::query::Query;
use crate::reply::{Reply, done, json, ok};
use crate::version::ApiVersion;

/// Of a process that could not be made.
const NOT_RUNNABLE: i32 = 126;

pub async fn create(
    State(api): State<Api>,
    Path(term): Path<String>,
    Json(config): Json<ExecConfig>,
) -> Reply {
    let containers = api.local_engine()?.containers().await?;
    let container = find(&containers, &term)?;
    if !container.running {
        return Err(not_running(&container.id));
    }
    if config.cmd.is_empty() {
        return Err(ApiError::invalid("No exec command specified"));
    }
    if config.privileged {
        return Err(ApiError::unsupported("a privileged exec"));
    }
    let exec = api.execs.make(actor_of(container), config);
    tell(&api, &exec, "exec_create");
    json(StatusCode::CREATED, &ExecCreated { id: exec.id.clone() })
}

pub async fn inspect(State(api): State<Api>, Path(id): Path<String>) -> Reply {
    let exec = known(&api, &id)?;
    let stage = exec.stage();
    let config = &exec.config;
    ok(&ExecInspect {
        id: exec.id.clone(),
        running: matches!(stage, Stage::Running(_)),
        exit_code: if let Stage::Ended(code) = stage { Some(code) } else { None },
        process_config: ProcessConfig {
            tty: config.tty,
            entrypoint: config.cmd.first().cloned().unwrap_or_default(),
            arguments: config.cmd.iter().skip(1).cloned().collect(),
            privileged: config.privileged,
            user: config.user.clone(),
        },
        open_stdin: config.attach_stdin,
        open_stderr: config.attach_stderr,
        open_stdout: config.attach_stdout,
        can_remove: matches!(stage, Stage::Ended(_)),
        container_id: exec.container.id.clone(),
        detach_keys: config.detach_keys.clone(),
    })
}

pub async fn resize(State(api): State<Api>, Path(id): Path<String>, query: Query) -> Reply {
    let exec = known(&api, &id)?;
    let number = |key: &str| {
        let text = query.get(key);
        let malformed = || ApiError::invalid(format!("strconv.Atoi: parsing {text:?}: invalid syntax"));
        text.parse::<u16>().map_err(|_| malformed())
    };
    let (rows, columns) = (number("h")?, number("w")?);
    match exec.stage() {
        Stage::Running(resize) => resize.to(rows, columns)?,
        Stage::Made | Stage::Ended(_) => {
            return Err(ApiError::new(StatusCode::CONFLICT, format!("exec {id} is not running")));
        }
    }
    done()
}

pub async fn start(
    State(api): State<Api>,
    Path(id): Path<String>,
    version: Extension<ApiVersion>,
    request: Request,
) -> Reply {
    let (mut parts, body) = request.into_parts();
    let upgrade = parts.extensions.remove::<OnUpgrade>().filter(|_| wants_upgrade(&parts.headers));
    let Json(options) = Json::<ExecStart>::from_request(Request::from_parts(parts, body), &()).await?;
    let exec = known(&api, &id)?;
    if !exec.begin() {
        let what =
            if matches!(exec.stage(), Stage::Ended(_)) { "has already run" } else { "is already running" };
        return Err(ApiError::new(StatusCode::CONFLICT, format!("Error: Exec command {id} {what}")));
    }
    let process = begin(&api, &exec, &options).await?;
    if options.detach {
        tokio::spawn(converse(api, exec, process, None));
        return done();
    }
    let kind = stream_kind(exec.config.tty, *version);
    let Some(upgrade) = upgrade else {
        let (streams, ended) = streams(&exec, process);
        let body = streams.alone(async move { end(&api, &exec, ended.await) });
        return Ok(([(header::CONTENT_TYPE, kind)], body).into_response());
    };
    tokio::spawn(async move {
        match upgrade.await {
            Ok(connection) => converse(api, exec, process, Some(TokioIo::new(connection))).await,
            Err(error) => {
                tracing::debug!(%error, "the connection of an exec is gone");
                converse(api, exec, process, None).await;
            }
        }
    });
    switching(kind)
}

fn known(api: &Api, id: &str) -> Result<Arc<Exec>, ApiError> {
    api.execs.get(id).ok_or_else(|| ApiError::not_found(format!("No such exec instance: {id}")))
}

fn not_running(container: &str) -> ApiError {
    ApiError::new(StatusCode::CONFLICT, format!("container {container} is not running"))
}

async fn begin(api: &Api, exec: &Exec, options: &ExecStart) -> Result<Process, ApiError> {
    let config = &exec.config;
    let request = ExecRequest {
        arguments: config.cmd.clone(),
        env: config.env.clone(),
        user: config.user.clone(),
        working_dir: config.working_dir.clone(),
        tty: config.tty,
        stdin: config.attach_stdin && !options.detach,
    };
    tell(api, exec, "exec_start");
    let process = match api.local_engine()?.exec(&exec.container.id, &request).await {
        Ok(process) => process,
        Err(error) => {
            exec.end(NOT_RUNNABLE);
            return Err(error.into());
        }
    };
    exec.has_console(process.resize.clone());
    if let Some([rows, columns]) = options.console_size.or(config.console_size).filter(|_| config.tty) {
        // A size that can't be set is that of the beginning.
        let _ = process.resize.to(rows, columns);
    }
    Ok(process)
}

/// The process with its client, if it has one. One whose client goes runs on.
async fn converse(api: Api, exec: Arc<Exec>, process: Process, connection: Option<Connection>) {
    let (streams, ended) = streams(&exec, process);
    streams.converse(connection, async { end(&api, &exec, ended.await) }).await;
}

fn streams(exec: &Exec, process: Process) -> (Streams, BoxFuture<'static, i32>) {
    let Process { input, output, resize: _, ended } = process;
    let ExecConfig { tty, attach_stdout: stdout, attach_stderr: stderr, .. } = exec.config;
    (Streams { input, output, tty, stdout, stderr }, ended)
}

/// `docker events` shows the command with it, in Docker's form: a blank ends a command without arguments.
fn tell(api: &Api, exec: &Exec, action: &str) {
    let (command, arguments) = exec.config.cmd.split_first().expect("an exec has a command");
    let action = format!("{action}: {command} {}", arguments.join(" "));
    api.events.tell(of_exec(clock::now(), action, (&exec.container, &exec.id), None));
}

fn end(api: &Api, exec: &Exec, code: i32) {
    exec.end(code);
    api.events.tell(of_exec(clock::now(), "exec_die".into(), (&exec.container, &exec.id), Some(code)));
}
