//! `api/types/volume`.

use control_model::spec::Labels;
use serde::{Deserialize, Serialize};

use super::common::{Rest, Time};

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Volume {
    pub created_at: Time,
    pub driver: &'static str,
    pub labels: Labels,
    pub mountpoint: String,
    pub name: String,
    pub options: Labels,
    pub scope: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ListReply {
    pub volumes: Vec<Volume>,
    pub warnings: Option<Vec<String>>,
}

/// `POST /volumes/create`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct CreateRequest {
    pub name: String,
    pub driver: String,
    pub driver_opts: Option<Labels>,
    pub labels: Option<Labels>,
    #[serde(rename = "*", skip_serializing)]
    pub rest: Rest,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PruneReply {
    pub volumes_deleted: Option<Vec<String>>,
    pub space_reclaimed: u64,
}
