//! `api/types/system`, of `docker system df`, and what prunes answer.

use serde::Serialize;

use super::container::Summary as ContainerSummary;
use super::image::{Deleted, Summary as ImageSummary};
use super::volume::Volume as VolumeSummary;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Usage {
    pub layers_size: u64,
    pub images: Vec<ImageSummary>,
    pub containers: Vec<Container>,
    pub volumes: Vec<Volume>,
    pub build_cache: Vec<()>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Container {
    #[serde(flatten)]
    pub summary: ContainerSummary,
    /// Bytes that it has changed of its image.
    #[serde(rename = "SizeRw")]
    pub size_rw: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Volume {
    #[serde(flatten)]
    pub volume: VolumeSummary,
    #[serde(rename = "UsageData")]
    pub usage_data: VolumeUse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct VolumeUse {
    pub ref_count: usize,
    /// Bytes; -1: not counted.
    pub size: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ImagesPruned {
    pub images_deleted: Option<Vec<Deleted>>,
    pub space_reclaimed: u64,
}

/// An image with who uses it. None shares anything with another here.
pub fn image(summary: ImageSummary, n_containers: usize) -> ImageSummary {
    let containers = i64::try_from(n_containers).unwrap_or(i64::MAX);
    ImageSummary { containers, shared_size: 0, ..summary }
}
