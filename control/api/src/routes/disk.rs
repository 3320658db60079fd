//! `docker system df`, and the prunes of what nobody uses. Containers of tasks are left: the node itself removes them.

use std::collections::BTreeMap;

use axum::Extension;
use axum::extract::State;
use control_manager::clock;
use control_manager::control::labels_match;
use serde_json::json;

use super::{containers, images, volumes};
use crate::context::Api;
use crate::dto::disk as api_disk;
use crate::dto::image::Deleted;
use crate::engine::Image;
use crate::query::{Filters, Query};
use crate::reply::{Reply, ok};
use crate::version::ApiVersion;

/// All that lies on this node's disk, or since API 1.42 the kinds that are asked for.
pub async fn usage(State(api): State<Api>, version: Extension<ApiVersion>, query: Query) -> Reply {
    let kinds = query.all("type");
    let is_wanted = |kind: &str| kinds.is_empty() || kinds.contains(&kind);
    let engine = api.local_engine()?;
    let (all_images, all_containers) = (engine.images().await?, engine.containers().await?);
    let on_disk = engine.disk_use().await?;
    let mut usage = api_disk::Usage {
        layers_size: all_images.iter().map(|one| one.size_bytes).sum(),
        ..api_disk::Usage::default()
    };
    if is_wanted("image") {
        let users = |id: &str| all_containers.iter().filter(|one| one.image_id == id).count();
        let counted = |image: Image| {
            let n_containers = users(&image.id);
            api_disk::image(images::summary(image, *version), n_containers)
        };
        usage.images = all_images.into_iter().map(counted).collect();
    }
    if is_wanted("volume") {
        for volume in engine.volumes().await? {
            let data = api_disk::VolumeUse {
                ref_count: volume.containers.len(),
                // Docker's word for what was not counted.
                size: on_disk
                    .volumes
                    .get(&volume.name)
                    .map_or(-1, |bytes| i64::try_from(*bytes).unwrap_or(i64::MAX)),
            };
            usage.volumes.push(api_disk::Volume { volume: volumes::shown(volume), usage_data: data });
        }
    }
    if is_wanted("container") {
        let now = clock::now();
        for container in all_containers {
            let size_rw = on_disk.containers.get(&container.id).copied().unwrap_or(0);
            let summary = containers::summary(&api, container, now);
            usage.containers.push(api_disk::Container { summary, size_rw });
        }
    }
    ok(&usage)
}

/// Images without a name, or with `dangling=false` all that no container has.
pub async fn prune_images(State(api): State<Api>, query: Query) -> Reply {
    let filters = query.filters(&["dangling", "label", "label!"])?;
    let is_dangling_alone = filters.flag("dangling")?.unwrap_or(true);
    let engine = api.local_engine()?;
    let (mut deleted, mut space_reclaimed) = (Vec::new(), 0);
    for image in engine.images().await? {
        let is_asked = !is_dangling_alone || image.tags.is_empty();
        if !is_asked || !is_pruned(&image.config.labels, &filters) {
            continue;
        }
        let names = if image.tags.is_empty() { vec![image.id.clone()] } else { image.tags.clone() };
        for name in names {
            match engine.remove_image(&name, false).await {
                Ok(removed) => deleted.extend(removed.into_iter().map(images::deleted)),
                Err(error) => tracing::debug!(image = name, %error, "an image is not pruned"),
            }
        }
        if deleted.iter().any(|one| matches!(one, Deleted::Deleted(id) if *id == image.id)) {
            space_reclaimed += image.size_bytes;
        }
    }
    let images_deleted = (!deleted.is_empty()).then_some(deleted);
    ok(&api_disk::ImagesPruned { images_deleted, space_reclaimed })
}

/// Networks of the cluster that no service and no task is in. A worker has none of its own to prune.
pub async fn prune_networks(State(api): State<Api>, query: Query) -> Reply {
    let filters = query.filters(&["label", "label!"])?;
    let mut deleted = Vec::new();
    if let Ok(control) = api.control() {
        for network in control.list_networks().await? {
            if network.spec.ingress || !is_pruned(&network.spec.labels, &filters) {
                continue;
            }
            match control.remove_network(&network.id.to_string()).await {
                Ok(()) => deleted.push(network.spec.name.clone()),
                Err(error) => tracing::debug!(network = network.spec.name, %error, "a network is not pruned"),
            }
        }
    }
    ok(&json!({ "NetworksDeleted": (!deleted.is_empty()).then_some(deleted) }))
}

/// Those that no service made and that do not run.
pub async fn prune_containers(State(api): State<Api>, query: Query) -> Reply {
    let filters = query.filters(&["label", "label!"])?;
    let engine = api.local_engine()?;
    let on_disk = engine.disk_use().await?.containers;
    let (mut deleted, mut space_reclaimed) = (Vec::new(), 0);
    let all = engine.containers().await?.into_iter();
    for container in all.filter(|one| one.own.is_some() && !one.is_up() && is_pruned(&one.labels, &filters)) {
        match engine.remove(&container.id, false, false).await {
            Ok(()) => {
                space_reclaimed += on_disk.get(&container.id).copied().unwrap_or(0);
                deleted.push(container.id);
            }
            Err(error) => tracing::debug!(container = container.id, %error, "a container is not pruned"),
        }
    }
    let deleted = (!deleted.is_empty()).then_some(deleted);
    ok(&json!({ "ContainersDeleted": deleted, "SpaceReclaimed": space_reclaimed }))
}

/// Nothing is built here.
pub async fn prune_build_cache() -> Reply {
    ok(&json!({ "CachesDeleted": null, "SpaceReclaimed": 0 }))
}

fn is_pruned(labels: &BTreeMap<String, String>, filters: &Filters) -> bool {
    let spared = filters.labels("label!");
    let is_spared = !spared.is_empty() && labels_match(labels, &spared);
    !is_spared && labels_match(labels, &filters.labels("label"))
}
