//! `meshctl backup` and `meshctl restore`. Not Docker's.

use axum::body::Body;
use axum::extract::State;
use axum::response::IntoResponse as _;
use http::header;
use http_body_util::BodyExt as _;
use serde::Deserialize;

use crate::base64;
use crate::body::Json;
use crate::context::Api;
use crate::error::ApiError;
use crate::node::{BackupSecret, Membership, RestoreRequest, SwarmError};
use crate::query::Query;
use crate::reply::{Reply, ok};

/// Largest backup that is taken back, bytes; and of what stands before it.
const MAX_BACKUP_BYTES: usize = 1 << 30;
const MAX_HEAD_BYTES: usize = 64 << 10;

/// What a backup is sealed under: one of the two.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct GivenSecret {
    passphrase: String,
    /// Base 64.
    key: String,
}

/// The first line of a restore's body.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RestoreHead {
    listen_addr: String,
    advertise_addr: String,
    data_path_addr: String,
    #[serde(flatten)]
    secret: GivenSecret,
}

impl GivenSecret {
    fn take(self) -> Result<BackupSecret, ApiError> {
        match (self.passphrase.is_empty(), self.key.is_empty()) {
            (false, true) => Ok(BackupSecret::Passphrase(self.passphrase)),
            (true, false) => base64::decode(&self.key)
                .map(BackupSecret::KeyFile)
                .ok_or_else(|| ApiError::invalid("the key is not in base 64")),
            _ => Err(ApiError::invalid("a backup is sealed with a passphrase, or with a key")),
        }
    }
}

/// The sealed file. Of a replica that may be old only if that is asked for (`stale=1`).
pub async fn take(State(api): State<Api>, query: Query, Json(given): Json<GivenSecret>) -> Reply {
    let (control, secret, stale_will_do) = (api.control()?, given.take()?, query.flag("stale"));
    control.read().await?;
    if control.was_stale() && !stale_will_do {
        return Err(ApiError::unavailable(
            "The swarm does not have a leader: this manager's state may be old. To back up what it has, say so: --stale",
        ));
    }
    let file = api.node.backup(secret).await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], file).into_response())
}

/// The body is a line of JSON, then the file.
pub async fn restore(State(api): State<Api>, body: Body) -> Reply {
    if api.node.local().membership != Membership::Inactive {
        return Err(SwarmError::AlreadyInSwarm.into());
    }
    let body = read(body).await?;
    let head_len = body.iter().take(MAX_HEAD_BYTES).position(|byte| *byte == b'\n');
    let (head, file) =
        body.split_at(head_len.ok_or_else(|| ApiError::invalid("the request has no first line"))?);
    let head: RestoreHead = serde_json::from_slice(head)
        .map_err(|error| ApiError::invalid(format!("the request's first line: {error}")))?;
    let request = RestoreRequest {
        listen_addr: head.listen_addr,
        advertise_addr: head.advertise_addr,
        data_path_addr: head.data_path_addr,
        secret: head.secret.take()?,
        file: file[1..].to_vec(),
    };
    ok(&api.node.restore(request).await?.to_string())
}

async fn read(mut body: Body) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| ApiError::invalid(format!("error reading the request body: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > MAX_BACKUP_BYTES {
            return Err(ApiError::invalid(format!("a backup has at most {MAX_BACKUP_BYTES} bytes")));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}
