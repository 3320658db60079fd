//! `docker images`, `pull`, `load`, `import`, `tag`, `rmi`, `image inspect`: images of this node.

use std::collections::BTreeMap;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use control_model::spec::RegistryCredentials;
use control_model::validate_image::parse_image_reference;
use futures::TryStreamExt;
use http::{HeaderMap, StatusCode};
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

use super::progress::{Lines, stream};
use super::registry;
use crate::base64;
use crate::context::Api;
use crate::convert::spec_out::health_config;
use crate::dto::common::rfc3339;
use crate::dto::image as api_image;
use crate::engine::{EngineError, Image, ImageConfig, ImportRequest, LocalEngine, Pulled, Removed, Upload};
use crate::error::ApiError;
use crate::query::{Filters, Query};
use crate::reply::{Reply, ok};
use crate::version::ApiVersion;

/// What Docker shows where an image has no tag (or no digest).
const DEFAULT_TAG: &str = "latest";
/// Since when an image has one size.
const WITHOUT_VIRTUAL_SIZE: ApiVersion = ApiVersion(44);

pub async fn list(State(api): State<Api>, version: Extension<ApiVersion>, query: Query) -> Reply {
    let filters = query.filters(&["reference", "dangling", "label"])?;
    let dangling = filters.flag("dangling")?;
    let mut images = api.local_engine()?.images().await?;
    images.retain(|image| {
        dangling.is_none_or(|wanted| wanted == image.tags.is_empty()) && matches(&filters, image)
    });
    images.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
    ok(&images.into_iter().map(|image| summary(image, *version)).collect::<Vec<_>>())
}

fn matches(filters: &Filters, image: &Image) -> bool {
    let references = filters.get("reference");
    let named = references.is_empty()
        || image.tags.iter().chain(&image.digests).any(|name| references.iter().any(|p| names(p, name)));
    named && control_manager::control::labels_match(&image.config.labels, &filters.labels("label"))
}

/// Whether `pattern` names `name:tag`, whole or without its tag; `*` and `?` stay within a path element.
fn names(pattern: &str, name: &str) -> bool {
    let bare = parse_image_reference(name).map_or(name, |reference| reference.name);
    glob(pattern.as_bytes(), name.as_bytes()) || glob(pattern.as_bytes(), bare.as_bytes())
}

fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => {
            glob(rest, text) || text.split_first().is_some_and(|(c, text)| *c != b'/' && glob(pattern, text))
        }
        (Some((b'?', pattern)), Some((c, text))) => *c != b'/' && glob(pattern, text),
        (Some((p, pattern)), Some((c, text))) => p == c && glob(pattern, text),
        _ => false,
    }
}

pub fn summary(image: Image, version: ApiVersion) -> api_image::Summary {
    const NANOS: i64 = 1_000_000_000;
    let labels = image.config.labels;
    api_image::Summary {
        containers: -1,
        created: image.created.map_or(0, |created| created.0 / NANOS),
        id: image.id,
        labels: (!labels.is_empty()).then_some(labels),
        parent_id: String::new(),
        repo_digests: image.digests,
        repo_tags: image.tags,
        shared_size: -1,
        size: image.size_bytes,
        virtual_size: (version < WITHOUT_VIRTUAL_SIZE).then_some(image.size_bytes),
    }
}

/// `POST /images/create`: a pull, or an import where the bytes are sent along.
pub async fn create(State(api): State<Api>, query: Query, headers: HeaderMap, body: Body) -> Reply {
    match (query.get("fromImage"), query.get("fromSrc")) {
        ("", "-") => import(&api, &query, body).await,
        ("", "") => Err(ApiError::invalid("fromImage or fromSrc must be given")),
        ("", _) => Err(ApiError::unsupported("importing from a URL")),
        (image, _) => pull(&api, image, &query, &headers).await,
    }
}

async fn import(api: &Api, query: &Query, body: Body) -> Reply {
    let reference = with_tag(query.get("repo"), query.get("tag"));
    if !reference.is_empty() && parse_image_reference(&reference).is_none() {
        return Err(invalid_reference());
    }
    let request = ImportRequest {
        reference,
        changes: query.all("changes").into_iter().map(str::to_owned).collect(),
        message: query.get("message").to_owned(),
    };
    let id = api.local_engine()?.import(upload(body), request).await?;
    let (lines, reply) = stream();
    send(&lines, api_image::Message::status(id));
    Ok(reply)
}

fn with_tag(name: &str, tag: &str) -> String {
    match (name, tag) {
        (name, "") | (name @ "", _) => name.to_owned(),
        (name, digest) if digest.contains(':') => format!("{name}@{digest}"),
        (name, tag) => format!("{name}:{tag}"),
    }
}

fn invalid_reference() -> ApiError {
    ApiError::invalid("invalid reference format")
}

fn upload(body: Body) -> Upload {
    Box::new(StreamReader::new(body.into_data_stream().map_err(std::io::Error::other)))
}

/// A client that has gone takes no more lines.
fn send(lines: &Lines, message: api_image::Message) {
    let _ = lines.send(message);
}

async fn pull(api: &Api, image: &str, query: &Query, headers: &HeaderMap) -> Reply {
    let wanted = with_tag(image, query.get("tag"));
    let Some(parts) = parse_image_reference(&wanted) else { return Err(invalid_reference()) };
    let (path, tag) = (familiar_path(parts.name).to_owned(), parts.tag.unwrap_or(DEFAULT_TAG).to_owned());
    let untagged = parts.tag.is_none() && parts.digest.is_none();
    let wanted = if untagged { format!("{}:{tag}", familiar(&wanted)) } else { familiar(&wanted).to_owned() };
    let pull =
        Pull { engine: api.local_engine()?, credentials: credentials(headers), path, tag, reference: wanted };
    pull.start().await
}

/// The path within Docker's own registry; other registries stay named.
fn familiar_path(name: &str) -> &str {
    name.strip_prefix("docker.io/").unwrap_or(name)
}

/// The reference as users write it.
fn familiar(reference: &str) -> &str {
    let path = familiar_path(reference);
    path.strip_prefix("library/").filter(|_| path != reference).unwrap_or(path)
}

/// Whom the client says it is at the registry (`X-Registry-Auth`): JSON in base 64.
pub fn credentials(headers: &HeaderMap) -> Option<RegistryCredentials> {
    let bytes = base64::decode(headers.get("X-Registry-Auth")?.to_str().ok()?)?;
    let given: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&bytes).ok()?;
    let field = |key: &str| given.get(key).and_then(|value| value.as_str()).unwrap_or_default().to_owned();
    let (username, identity_token) = (field("username"), field("identitytoken"));
    let is_somebody = !username.is_empty() || !identity_token.is_empty();
    is_somebody.then(|| RegistryCredentials { username, password: field("password"), identity_token })
}

struct Pull {
    engine: std::sync::Arc<dyn LocalEngine>,
    credentials: Option<RegistryCredentials>,
    path: String,
    tag: String,
    reference: String,
}

impl Pull {
    /// Fails plainly as long as nothing was said; after that the error is the reply's last line, as Docker has it.
    async fn start(self) -> Reply {
        let (progress, mut lines) = mpsc::unbounded_channel();
        let (engine, reference) = (self.engine.clone(), self.reference.clone());
        let credentials = self.credentials.clone();
        let mut work = tokio::spawn(async move { engine.pull(&reference, credentials, progress).await });
        let first = lines.recv().await;
        let (sender, reply) = stream();
        if first.is_none() {
            self.finish(&sender, &ended((&mut work).await)?);
            return Ok(reply);
        }
        tokio::spawn(async move {
            send(&sender, api_image::Message::status(format!("{}: Pulling from {}", self.tag, self.path)));
            let mut next = first;
            while let Some(line) = next {
                send(&sender, api_image::Message::status(line));
                next = lines.recv().await;
            }
            match ended(work.await) {
                Ok(pulled) => self.finish(&sender, &pulled),
                Err(error) => send(&sender, api_image::Message::error(error.to_string())),
            }
        });
        Ok(reply)
    }

    fn finish(&self, lines: &Lines, pulled: &Pulled) {
        let done = if pulled.is_new { "Downloaded newer image for" } else { "Image is up to date for" };
        let name = &self.reference;
        send(lines, api_image::Message::status(format!("Digest: {}", pulled.digest)));
        send(lines, api_image::Message::status(format!("Status: {done} {name}")));
    }
}

fn ended(result: Result<Result<Pulled, EngineError>, tokio::task::JoinError>) -> Result<Pulled, EngineError> {
    result.unwrap_or_else(|error| Err(EngineError::Failed(error.to_string())))
}

/// `docker load`.
pub async fn load(State(api): State<Api>, body: Body) -> Reply {
    let loaded = api.local_engine()?.load(upload(body)).await?;
    let (lines, reply) = stream();
    for name in loaded {
        let what = if name.starts_with("sha256:") { "Loaded image ID" } else { "Loaded image" };
        let message =
            api_image::Message { stream: format!("{what}: {name}\n"), ..api_image::Message::default() };
        send(&lines, message);
    }
    Ok(reply)
}

/// `GET /images/{name}/{what}`.
pub async fn get(State(api): State<Api>, Path(path): Path<String>, query: Query) -> Reply {
    if path == "get" {
        let names = query.all("names").into_iter().map(str::to_owned).collect();
        return registry::save(&api, names).await;
    }
    if let Some(name) = path.strip_suffix("/json") {
        return ok(&inspected(api.local_engine()?.image(name).await?));
    }
    match path.rsplit_once('/') {
        Some((name, "history")) => registry::history(&api, name).await,
        Some((name, "get")) => registry::save(&api, vec![name.to_owned()]).await,
        None => Err(ApiError::unsupported(format!("GET /images/{path}"))),
        _ => Err(ApiError::not_found("page not found")),
    }
}

fn inspected(image: Image) -> api_image::Inspect {
    api_image::Inspect {
        repo_tags: image.tags,
        repo_digests: image.digests,
        parent: String::new(),
        comment: image.comment,
        created: image.created.map(|created| rfc3339(Some(created))).unwrap_or_default(),
        docker_version: String::new(),
        author: String::new(),
        config: config(image.config),
        architecture: image.architecture,
        os: image.os,
        size: image.size_bytes,
        graph_driver: api_image::GraphDriver { data: None, name: "overlayfs".into() },
        root_fs: api_image::RootFs { kind: "layers".into(), layers: image.layers },
        metadata: api_image::Metadata::default(),
        id: image.id,
    }
}

fn config(config: ImageConfig) -> api_image::Config {
    let set = |names: Vec<String>| api_image::Set(names.into_iter().collect());
    api_image::Config {
        user: config.user,
        exposed_ports: set(config.exposed_ports),
        env: config.env,
        entrypoint: config.entrypoint,
        cmd: config.command,
        volumes: set(config.volumes),
        working_dir: config.working_dir,
        labels: config.labels,
        stop_signal: config.stop_signal,
        healthcheck: config.health.as_ref().map(health_config),
    }
}

/// `POST /images/{name}/{what}`.
pub async fn post(
    State(api): State<Api>,
    Path(path): Path<String>,
    query: Query,
    headers: HeaderMap,
) -> Reply {
    if let Some(name) = path.strip_suffix("/push") {
        let tag = Some(query.get("tag")).filter(|tag| !tag.is_empty()).unwrap_or(DEFAULT_TAG);
        let reference = with_tag(name, tag);
        if parse_image_reference(&reference).is_none() {
            return Err(invalid_reference());
        }
        return registry::push(&api, reference, &headers).await;
    }
    let Some(name) = path.strip_suffix("/tag") else {
        return Err(if path.contains('/') {
            ApiError::not_found("page not found")
        } else {
            ApiError::unsupported(format!("POST /images/{path}"))
        });
    };
    let tag = query.get("tag");
    let reference = with_tag(query.get("repo"), if tag.is_empty() { DEFAULT_TAG } else { tag });
    match parse_image_reference(&reference) {
        Some(parts) if parts.digest.is_none() => {}
        _ => return Err(invalid_reference()),
    }
    api.local_engine()?.tag(name, familiar(&reference)).await?;
    Ok(StatusCode::CREATED.into_response())
}

/// `docker rmi`.
pub async fn remove(State(api): State<Api>, Path(name): Path<String>, query: Query) -> Reply {
    let removed = api.local_engine()?.remove_image(&name, query.flag("force")).await?;
    ok(&removed.into_iter().map(deleted).collect::<Vec<_>>())
}

pub fn deleted(removed: Removed) -> api_image::Deleted {
    match removed {
        Removed::Untagged(name) => api_image::Deleted::Untagged(name),
        Removed::Deleted(id) => api_image::Deleted::Deleted(id),
    }
}

/// `GET /distribution/{name}/json`: what the registry has, so that a service can be pinned to a digest.
pub async fn distribution(
    State(api): State<Api>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Some(name) = path.strip_suffix("/json") else { return Err(ApiError::not_found("page not found")) };
    if parse_image_reference(name).is_none() {
        return Err(invalid_reference());
    }
    let found = api.local_engine()?.distribution(name, credentials(&headers)).await?;
    ok(&api_image::Distribution {
        descriptor: api_image::Descriptor {
            media_type: found.media_type,
            digest: found.digest,
            size: found.size_bytes,
        },
        platforms: (found.platforms.into_iter())
            .map(|(os, architecture)| api_image::Platform { architecture, os })
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_name_images() {
        assert!(names("whoami", "whoami:v1"));
        assert!(names("who*", "whoami:v1"));
        assert!(names("whoami:v?", "whoami:v1"));
        assert!(!names("who", "whoami:v1"));
        assert!(!names("*", "team/whoami:v1"));
        assert!(names("team/*", "team/whoami:v1"));
    }

    #[test]
    fn credentials_are_read_where_there_are_any() {
        let of = |text: &str| {
            let value = text.parse().expect("a header");
            credentials(&HeaderMap::from_iter([("x-registry-auth".parse().expect("a name"), value)]))
        };
        let given = of(&base64::encode(br#"{"username":"u","password":"p","serveraddress":"x"}"#));
        assert!(given.is_some_and(|c| c.username == "u" && c.password == "p"));
        for none in ["e30=", "", "no base 64", "eyJ1c2VybmFtZSI6NX0="] {
            assert!(of(none).is_none(), "{none}");
        }
        assert!(credentials(&HeaderMap::new()).is_none());
    }

    #[test]
    fn references_are_said_as_users_write_them() {
        assert_eq!(familiar("docker.io/library/nginx:1"), "nginx:1");
        assert_eq!(familiar("docker.io/team/app"), "team/app");
        assert_eq!(familiar("library/nginx"), "library/nginx");
        assert_eq!(familiar("reg.example:5000/library/x"), "reg.example:5000/library/x");
    }

    #[test]
    fn tags_and_digests_join_names() {
        assert_eq!(with_tag("a", "1"), "a:1");
        assert_eq!(with_tag("a", "sha256:00"), "a@sha256:00");
        assert_eq!(with_tag("a", ""), "a");
        assert_eq!(with_tag("", "1"), "");
    }
}
