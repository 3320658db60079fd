//! `docker volume …`: those of this node.

use axum::Extension;
use axum::extract::{Path, State};
use axum::response::IntoResponse as _;
use control_manager::control::labels_match;
use http::StatusCode;

use crate::body::Json;
use crate::context::Api;
use crate::convert::refuse_unknown;
use crate::dto::common::Time;
use crate::dto::volume as api_volume;
use crate::engine::{EngineError, Volume};
use crate::error::ApiError;
use crate::query::{Filters, Query};
use crate::reply::{Reply, json, ok};
use crate::version::ApiVersion;

/// The only driver there is.
const LOCAL: &str = "local";
/// Since when a prune spares what has a name, unless it is asked for all.
const SPARES_NAMED: ApiVersion = ApiVersion(42);

pub async fn list(State(api): State<Api>, query: Query) -> Reply {
    let filters = query.filters(&["dangling", "driver", "label", "name"])?;
    let is_dangling = filters.flag("dangling")?;
    let matches = |volume: &Volume| {
        let any = |key: &str, test: &dyn Fn(&str) -> bool| {
            filters.get(key).is_empty() || filters.get(key).iter().any(|value| test(value))
        };
        any("name", &|part| volume.name.contains(part))
            && any("driver", &|driver| driver == LOCAL)
            && labels_match(&volume.labels, &filters.labels("label"))
            && is_dangling.is_none_or(|wanted| volume.containers.is_empty() == wanted)
    };
    let all = api.local_engine()?.volumes().await?;
    let volumes = all.into_iter().filter(matches).map(shown).collect();
    ok(&api_volume::ListReply { volumes, warnings: None })
}

pub async fn inspect(State(api): State<Api>, Path(name): Path<String>) -> Reply {
    ok(&shown(find(&api, &name).await?))
}

pub async fn create(State(api): State<Api>, Json(given): Json<api_volume::CreateRequest>) -> Reply {
    if given.rest.contains_key("ClusterVolumeSpec") {
        return Err(ApiError::unsupported("a cluster volume"));
    }
    refuse_unknown(&given.rest, "the volume")?;
    if !["", LOCAL].contains(&given.driver.as_str()) {
        let driver = given.driver;
        let words = format!(
            "create {}: error looking up volume plugin {driver}: plugin \"{driver}\" not found",
            given.name
        );
        return Err(ApiError::not_found(words));
    }
    let (labels, options) = (given.labels.unwrap_or_default(), given.driver_opts.unwrap_or_default());
    let made = api.local_engine()?.create_volume(&given.name, labels, options).await?;
    json(StatusCode::CREATED, &shown(made))
}

pub async fn remove(State(api): State<Api>, Path(name): Path<String>, query: Query) -> Reply {
    match api.local_engine()?.remove_volume(&name).await {
        Err(EngineError::NotFound(_)) if query.flag("force") => {}
        other => drop(other?),
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Removes what no container has: what has a name only if it is asked for, since API 1.42.
pub async fn prune(State(api): State<Api>, version: Extension<ApiVersion>, query: Query) -> Reply {
    let filters = query.filters(&["label", "label!", "all"])?;
    let is_all = filters.flag("all")?.unwrap_or(*version < SPARES_NAMED);
    let engine = api.local_engine()?;
    let all = engine.volumes().await?;
    let (mut deleted, mut space_reclaimed) = (Vec::new(), 0);
    for volume in all.into_iter().filter(|one| (is_all || one.is_drawn()) && is_pruned(one, &filters)) {
        match engine.remove_volume(&volume.name).await {
            Ok(size_bytes) => {
                space_reclaimed += size_bytes;
                deleted.push(volume.name);
            }
            // Somebody was faster, or has it now.
            Err(error) => tracing::debug!(volume = volume.name, %error, "a volume is not pruned"),
        }
    }
    let volumes_deleted = (!deleted.is_empty()).then_some(deleted);
    ok(&api_volume::PruneReply { volumes_deleted, space_reclaimed })
}

fn is_pruned(volume: &Volume, filters: &Filters) -> bool {
    let spared = filters.labels("label!");
    let is_spared = !spared.is_empty() && labels_match(&volume.labels, &spared);
    volume.containers.is_empty() && !is_spared && labels_match(&volume.labels, &filters.labels("label"))
}

async fn find(api: &Api, name: &str) -> Result<Volume, ApiError> {
    let all = api.local_engine()?.volumes().await?;
    let found = all.into_iter().find(|volume| volume.name == name);
    found.ok_or_else(|| ApiError::not_found(format!("get {name}: no such volume")))
}

pub fn shown(volume: Volume) -> api_volume::Volume {
    api_volume::Volume {
        created_at: Time(Some(volume.created)),
        driver: LOCAL,
        labels: volume.labels,
        mountpoint: volume.mountpoint,
        name: volume.name,
        options: volume.options,
        scope: LOCAL,
    }
}
