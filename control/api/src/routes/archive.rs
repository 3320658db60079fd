//! `docker cp`: files of this node's containers, as archives.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::IntoResponse as _;
use futures::TryStreamExt as _;
use http::header::CONTENT_TYPE;
use http::{HeaderName, StatusCode};
use serde::Serialize;
use tokio_util::io::StreamReader;

use super::containers::find;
use crate::base64;
use crate::context::Api;
use crate::dto::common::rfc3339;
use crate::engine::{Container, PathStat, Unpacking};
use crate::error::ApiError;
use crate::query::Query;
use crate::reply::Reply;

const STAT: HeaderName = HeaderName::from_static("x-docker-container-path-stat");
const KIND_MASK: u32 = 0o170_000;
/// Kinds of files and further bits: the kernel's, and Go's (`io/fs`).
const KINDS: [(u32, u32); 6] = [
    (0o040_000, 1 << 31),
    (0o120_000, 1 << 27),
    (0o060_000, 1 << 26),
    (0o020_000, 1 << 26 | 1 << 21),
    (0o010_000, 1 << 25),
    (0o140_000, 1 << 24),
];
const BITS: [(u32, u32); 3] = [(0o4000, 1 << 23), (0o2000, 1 << 22), (0o1000, 1 << 20)];

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownStat {
    name: String,
    size: u64,
    mode: u32,
    mtime: String,
    link_target: String,
}

/// `HEAD`.
pub async fn stat(State(api): State<Api>, Path(term): Path<String>, query: Query) -> Reply {
    let (container, path) = asked(&api, &term, &query).await?;
    let stat = api.local_engine()?.path_stat(&container.id, path).await?;
    Ok([(STAT, header(stat))].into_response())
}

/// `GET`.
pub async fn get(State(api): State<Api>, Path(term): Path<String>, query: Query) -> Reply {
    let (container, path) = asked(&api, &term, &query).await?;
    let engine = api.local_engine()?;
    let stat = engine.path_stat(&container.id, path).await?;
    let archive = engine.pack(&container.id, path).await?;
    let headers = [(STAT, header(stat)), (CONTENT_TYPE, "application/x-tar".to_owned())];
    Ok((headers, Body::from_stream(archive)).into_response())
}

/// `PUT`: the body is the archive.
pub async fn put(State(api): State<Api>, Path(term): Path<String>, query: Query, body: Body) -> Reply {
    let (container, path) = asked(&api, &term, &query).await?;
    let how =
        Unpacking { keeps_kinds: query.flag("noOverwriteDirNonDir"), is_users: query.flag("copyUIDGID") };
    let archive = StreamReader::new(body.into_data_stream().map_err(std::io::Error::other));
    api.local_engine()?.unpack(&container.id, path, how, Box::new(archive)).await?;
    Ok(StatusCode::OK.into_response())
}

async fn asked<'q>(api: &Api, term: &str, query: &'q Query) -> Result<(Container, &'q str), ApiError> {
    let path = query.get("path");
    if path.is_empty() {
        return Err(ApiError::invalid("bad parameter: 'path' cannot be empty"));
    }
    let containers = api.local_engine()?.containers().await?;
    Ok((find(&containers, term)?.clone(), path))
}

fn header(stat: PathStat) -> String {
    let shown = ShownStat {
        name: stat.name,
        size: stat.size_bytes,
        mode: go_mode(stat.mode),
        mtime: rfc3339(Some(stat.modified)),
        link_target: stat.link_target,
    };
    base64::encode(&serde_json::to_vec(&shown).expect("text and numbers"))
}

fn go_mode(mode: u32) -> u32 {
    let kind = KINDS.iter().find(|(kernels, _)| mode & KIND_MASK == *kernels).map_or(0, |(_, go)| *go);
    let bits = BITS.iter().filter(|(kernels, _)| mode & kernels != 0).map(|(_, go)| go);
    bits.fold(mode & 0o777 | kind, |all, bit| all | bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_gos() {
        for (kernels, go) in [
            (0o100_644, 0o644),
            (0o040_755, 1 << 31 | 0o755),
            (0o041_777, 1 << 31 | 1 << 20 | 0o777),
            (0o120_777, 1 << 27 | 0o777),
            (0o104_755, 1 << 23 | 0o755),
            (0o020_620, 1 << 26 | 1 << 21 | 0o620),
        ] {
            assert_eq!(go_mode(kernels), go, "{kernels:o}");
        }
    }
}
