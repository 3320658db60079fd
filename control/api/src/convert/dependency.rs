//! Secrets, configs and references to them, both ways (moby `daemon/cluster/convert/secret.go`, `config.go`).

use control_manager::control::ControlError;
use control_model::dependency::{Dependency, DependencyFile, DependencyKind, DependencySpec, Payload};

use super::refuse_unknown;
use crate::base64;
use crate::dto::common::Rest;
use crate::dto::dependency as api;
use crate::error::ApiError;

/// The one template driver that there is.
const GOLANG: &str = "golang";
/// What the CLI gives where the user says nothing.
const ROOT: &str = "0";

/// The object. The bytes of a secret are shown to nobody.
pub fn dependency(one: &Dependency) -> api::Dependency {
    let driver = || api::Driver { name: GOLANG.into(), rest: Rest::new() };
    api::Dependency {
        id: one.id.to_string(),
        meta: (&one.meta).into(),
        spec: api::DependencySpec {
            name: one.spec.name.clone(),
            labels: one.spec.labels.clone(),
            data: (one.kind == DependencyKind::Config).then(|| base64::encode(&one.spec.data.0)),
            driver: None,
            templating: one.spec.is_template.then(driver),
            rest: Rest::new(),
        },
    }
}

/// The spec that `given` asks for.
pub fn dependency_spec(kind: DependencyKind, given: api::DependencySpec) -> Result<DependencySpec, ApiError> {
    let place = if kind == DependencyKind::Secret { "SecretSpec" } else { "ConfigSpec" };
    refuse_unknown(&given.rest, place)?;
    if let Some(driver) = given.driver.filter(|driver| !driver.name.is_empty()) {
        return Err(ApiError::unsupported(format!("{} driver {}", kind.word(), driver.name)));
    }
    let templating = given.templating.unwrap_or_default();
    refuse_unknown(&templating.rest, &format!("{place}.Templating"))?;
    if !["", GOLANG].contains(&templating.name.as_str()) {
        return Err(ApiError::unsupported(format!("template driver {}", templating.name)));
    }
    let data = base64::decode(&given.data.unwrap_or_default());
    Ok(DependencySpec {
        name: given.name,
        labels: given.labels,
        data: Payload(data.ok_or_else(|| ApiError::invalid("illegal base64 data"))?),
        is_template: !templating.name.is_empty(),
    })
}

/// What a container's references ask for, secrets first.
pub fn dependency_files(
    secrets: Vec<api::SecretReference>,
    configs: Vec<api::ConfigReference>,
) -> Result<Vec<DependencyFile>, ApiError> {
    const PLACE: &str = "Spec.TaskTemplate.ContainerSpec";
    let mut files = Vec::with_capacity(secrets.len() + configs.len());
    for given in secrets {
        refuse_unknown(&given.rest, &format!("{PLACE}.Secrets"))?;
        files.push(dependency_file(DependencyKind::Secret, &given.secret_id, given.secret_name, given.file)?);
    }
    for given in configs {
        refuse_unknown(&given.rest, &format!("{PLACE}.Configs"))?;
        files.push(dependency_file(DependencyKind::Config, &given.config_id, given.config_name, given.file)?);
    }
    Ok(files)
}

fn dependency_file(
    kind: DependencyKind,
    id: &str,
    name: String,
    file: Option<api::ReferenceFile>,
) -> Result<DependencyFile, ApiError> {
    let word = kind.word();
    if id.is_empty() || name.is_empty() {
        return Err(ApiError::invalid(format!("malformed {word} reference")));
    }
    let file =
        file.ok_or_else(|| ApiError::invalid(format!("malformed {word} reference, no target provided")))?;
    refuse_unknown(&file.rest, &format!("File of {word} {name}"))?;
    let owner = |given: &str, what: &str| match given {
        "" => Ok(0),
        number => number
            .parse()
            .map_err(|_| ApiError::invalid(format!("{word} {name}: {what} {number:?} is not a number"))),
    };
    let (uid, gid) = (owner(&file.uid, "UID")?, owner(&file.gid, "GID")?);
    let Ok(id) = id.parse() else {
        return Err(ControlError::DependenciesMissing(kind.into(), vec![name]).into());
    };
    Ok(DependencyFile { kind, id, name, target: file.name, uid, gid, mode: file.mode })
}

/// A container's references to secrets.
pub fn secret_references(files: &[DependencyFile]) -> Vec<api::SecretReference> {
    let secrets = files.iter().filter(|file| file.kind == DependencyKind::Secret);
    let shown = secrets.map(|secret| api::SecretReference {
        file: Some(reference_file(secret)),
        secret_id: secret.id.to_string(),
        secret_name: secret.name.clone(),
        rest: Rest::new(),
    });
    shown.collect()
}

/// A container's references to configs.
pub fn config_references(files: &[DependencyFile]) -> Vec<api::ConfigReference> {
    let configs = files.iter().filter(|file| file.kind == DependencyKind::Config);
    let shown = configs.map(|config| api::ConfigReference {
        file: Some(reference_file(config)),
        config_id: config.id.to_string(),
        config_name: config.name.clone(),
        rest: Rest::new(),
    });
    shown.collect()
}

fn reference_file(file: &DependencyFile) -> api::ReferenceFile {
    let owner = |id: u32| if id == 0 { ROOT.to_owned() } else { id.to_string() };
    api::ReferenceFile {
        name: file.target.clone(),
        uid: owner(file.uid),
        gid: owner(file.gid),
        mode: file.mode,
        rest: Rest::new(),
    }
}
