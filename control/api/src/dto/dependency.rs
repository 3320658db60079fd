//! `api/types/swarm/secret.go`, `config.go`.

use control_model::spec::Labels;
use serde::{Deserialize, Serialize};

use super::common::{Meta, Rest};

/// A secret or a config.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Dependency {
    #[serde(rename = "ID")]
    pub id: String,
    #[serde(flatten)]
    pub meta: Meta,
    pub spec: DependencySpec,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DependencySpec {
    pub name: String,
    pub labels: Labels,
    /// Base 64. Of a secret it only comes in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<Driver>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub templating: Option<Driver>,
    #[serde(rename = "*", skip_serializing)]
    pub rest: Rest,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Driver {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(rename = "*", skip_serializing)]
    pub rest: Rest,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CreateReply {
    #[serde(rename = "ID")]
    pub id: String,
}

/// A secret of a container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct SecretReference {
    pub file: Option<ReferenceFile>,
    #[serde(rename = "SecretID")]
    pub secret_id: String,
    pub secret_name: String,
    #[serde(rename = "*", skip_serializing)]
    pub rest: Rest,
}

/// A config of a container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ConfigReference {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<ReferenceFile>,
    #[serde(rename = "ConfigID")]
    pub config_id: String,
    pub config_name: String,
    #[serde(rename = "*", skip_serializing)]
    pub rest: Rest,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ReferenceFile {
    pub name: String,
    #[serde(rename = "UID")]
    pub uid: String,
    #[serde(rename = "GID")]
    pub gid: String,
    /// Permission bits.
    pub mode: u32,
    #[serde(rename = "*", skip_serializing)]
    pub rest: Rest,
}
