//! What leaves a node: `docker save`, `push`, `login`; and `docker history`.

use axum::body::Body;
use axum::extract::{Json, State};
use axum::response::IntoResponse as _;
use control_model::Timestamp;
use control_model::spec::RegistryCredentials;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::images::credentials;
use super::progress::stream;
use crate::context::Api;
use crate::dto::image::Message;
use crate::error::ApiError;
use crate::reply::{Reply, ok};

const NANOS: i64 = 1_000_000_000;
/// Of a step whose image is not kept.
const MISSING: &str = "<missing>";
/// Docker's name of its own registry, as the CLI has it.
const HUB: &str = "https://index.docker.io/v1/";

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ShownStep {
    id: String,
    /// Seconds since the epoch.
    created: i64,
    created_by: String,
    tags: Option<Vec<String>>,
    size: u64,
    comment: String,
}

pub async fn history(api: &Api, name: &str) -> Reply {
    let engine = api.local_engine()?;
    let image = engine.image(name).await?;
    let mut first = Some(image);
    let shown = engine.history(name).await?.into_iter().map(|step| {
        let whole = first.take();
        ShownStep {
            id: whole.as_ref().map_or_else(|| MISSING.to_owned(), |image| image.id.clone()),
            created: step.created.map_or(0, |Timestamp(at)| at / NANOS),
            created_by: step.created_by,
            tags: whole.map(|image| image.tags).filter(|tags| !tags.is_empty()),
            size: step.size_bytes,
            comment: step.comment,
        }
    });
    ok(&shown.collect::<Vec<_>>())
}

pub async fn save(api: &Api, names: Vec<String>) -> Reply {
    if names.is_empty() {
        return Err(ApiError::invalid("no image is named"));
    }
    let archive = api.local_engine()?.save(&names).await?;
    Ok(([(CONTENT_TYPE, "application/x-tar")], Body::from_stream(archive)).into_response())
}

/// `reference` has its tag; the error of a push is its reply's last line.
pub async fn push(api: &Api, reference: String, headers: &HeaderMap) -> Reply {
    let engine = api.local_engine()?;
    let credentials = credentials(headers);
    engine.image(&reference).await?;
    let (progress, mut said) = mpsc::unbounded_channel();
    let (lines, reply) = stream();
    tokio::spawn(async move {
        // A client that has gone takes no more lines; the push goes on.
        let tell = |message| drop(lines.send(message));
        let (repository, tag) = reference.rsplit_once(':').unwrap_or((&reference, "latest"));
        tell(Message::status(format!("The push refers to repository [{repository}]")));
        let pushing = engine.push(&reference, credentials, progress);
        let telling = async {
            while let Some(line) = said.recv().await {
                tell(Message::status(line));
            }
        };
        match tokio::join!(pushing, telling).0 {
            Ok(pushed) => {
                let words = format!("{tag}: digest: {} size: {}", pushed.digest, pushed.size_bytes);
                tell(Message::status(words));
            }
            Err(error) => tell(Message::error(error.to_string())),
        }
    });
    Ok(reply)
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
pub struct AuthConfig {
    username: String,
    password: String,
    identitytoken: String,
    serveraddress: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct LoggedIn {
    status: &'static str,
    identity_token: String,
}

/// `docker login`: nothing is kept here; the CLI keeps what it was given.
pub async fn login(State(api): State<Api>, Json(given): Json<AuthConfig>) -> Reply {
    let server = match given.serveraddress.as_str() {
        "" | HUB => "docker.io",
        other => other.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/'),
    };
    let credentials = RegistryCredentials {
        username: given.username,
        password: given.password,
        identity_token: given.identitytoken,
    };
    api.local_engine()?.login(server, &credentials).await?;
    ok(&LoggedIn { status: "Login Succeeded", identity_token: String::new() })
}
