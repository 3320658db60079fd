//! The node's images and containers as `control_runtime` keeps them.

use std::collections::BTreeMap;
use std::str::FromStr;

use async_trait::async_trait;
use control_model::Timestamp;
use control_runtime::image::{ImageChanges, ImageError, ImageRecord, PullError, Reference, RegistryAuth};
use control_runtime::{ContainerInfo, Oci};
use tokio::sync::mpsc;

use crate::engine::{
    Container, Credentials, Distribution, Engine, EngineError, Image, ImageConfig, ImportRequest, Pulled,
    Removed, Upload,
};

#[async_trait]
impl Engine for Oci {
    async fn images(&self) -> Result<Vec<Image>, EngineError> {
        Ok(Oci::images(self).list().into_iter().map(|(record, names)| listed(record, names)).collect())
    }

    async fn image(&self, name: &str) -> Result<Image, EngineError> {
        let details = Oci::images(self).inspect(name)?;
        let configuration = details.configuration;
        let config = configuration.config().clone().unwrap_or_default();
        Ok(Image {
            os: configuration.os().to_string(),
            architecture: configuration.architecture().to_string(),
            layers: configuration.rootfs().diff_ids().clone(),
            comment: configuration
                .history()
                .iter()
                .flatten()
                .last()
                .and_then(|h| h.comment().clone())
                .unwrap_or_default(),
            config: ImageConfig {
                env: config.env().clone().unwrap_or_default(),
                entrypoint: config.entrypoint().clone().unwrap_or_default(),
                command: config.cmd().clone().unwrap_or_default(),
                working_dir: config.working_dir().clone().unwrap_or_default(),
                user: config.user().clone().unwrap_or_default(),
                labels: details.record.labels.clone(),
                exposed_ports: config.exposed_ports().clone().unwrap_or_default(),
                volumes: config.volumes().clone().unwrap_or_default(),
                stop_signal: config.stop_signal().clone().unwrap_or_default(),
            },
            ..listed(details.record, details.names)
        })
    }

    async fn pull(
        &self,
        reference: &str,
        credentials: Option<Credentials>,
        progress: mpsc::UnboundedSender<String>,
    ) -> Result<Pulled, EngineError> {
        let wanted = parse(reference)?;
        let before = Oci::images(self).find(reference).map(|image| image.id);
        let auth = credentials.map(|c| RegistryAuth { username: c.username, password: c.password });
        // A client that has gone takes no more lines; the pull goes on for the next one who asks.
        let say = |line: &str| drop(progress.send(line.to_owned()));
        let image = Oci::images(self).pull(&wanted, auth.as_ref(), &say).await?;
        Ok(Pulled { is_new: before.as_ref() != Some(&image.id), digest: image.manifest })
    }

    async fn load(&self, mut archive: Upload) -> Result<Vec<String>, EngineError> {
        Ok(Oci::images(self).load(&mut archive).await?)
    }

    async fn import(&self, mut archive: Upload, request: ImportRequest) -> Result<String, EngineError> {
        let name = match request.reference.as_str() {
            "" => None,
            text => Some(parse(text)?),
        };
        let changes =
            ImageChanges::parse(request.changes.iter().map(String::as_str)).map_err(ImageError::from)?;
        let image = Oci::images(self).import(&mut archive, name.as_ref(), &changes, &request.message).await?;
        Ok(image.id)
    }

    async fn tag(&self, name: &str, reference: &str) -> Result<(), EngineError> {
        Ok(Oci::images(self).tag(name, &parse(reference)?)?)
    }

    async fn remove_image(&self, name: &str, _: bool) -> Result<Vec<Removed>, EngineError> {
        let (untagged, deleted) = Oci::remove_image(self, name).await?;
        Ok(untagged.into_iter().map(Removed::Untagged).chain(deleted.map(Removed::Deleted)).collect())
    }

    /// From the local store: what was pulled is known by a registry's digest; what was imported is not, and a digest
    /// of this node's would name nothing elsewhere.
    async fn distribution(&self, reference: &str) -> Result<Distribution, EngineError> {
        let wanted = parse(reference)?;
        let unknown =
            || EngineError::NotFound(format!("manifest for {reference} not found: manifest unknown"));
        let image = Engine::image(self, reference).await.map_err(|_| unknown())?;
        let mut digests = image.digests.iter().filter_map(|name| name.split_once('@'));
        let known =
            digests.find(|(name, _)| *name == wanted.familiar_repository() || *name == wanted.repository());
        let (_, digest) = known.ok_or_else(unknown)?;
        Ok(Distribution {
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            digest: digest.to_owned(),
            size_bytes: 0,
            platforms: vec![(image.os, image.architecture)],
        })
    }

    async fn containers(&self) -> Result<Vec<Container>, EngineError> {
        Ok(self.list_containers().into_iter().map(container).collect())
    }
}

fn parse(reference: &str) -> Result<Reference, EngineError> {
    Reference::parse(reference).map_err(|error| EngineError::Invalid(error.to_string()))
}

/// What lists show; the rest is in the image's configuration.
fn listed(record: ImageRecord, names: Vec<String>) -> Image {
    let familiar = |name: &String| match name.split_once('@') {
        Some((repository, digest)) => match Reference::parse(repository) {
            Ok(reference) => format!("{}@{digest}", reference.familiar_repository()),
            Err(_) => name.clone(),
        },
        None => name.clone(),
    };
    Image {
        created: timestamp(&record.created),
        tags: names,
        digests: record.repo_digests.iter().map(familiar).collect(),
        size_bytes: record.size_bytes,
        config: ImageConfig { labels: record.labels, ..ImageConfig::default() },
        id: record.id,
        ..Image::default()
    }
}

fn timestamp(text: &str) -> Option<Timestamp> {
    let time = jiff::Timestamp::from_str(text).ok()?;
    i64::try_from(time.as_nanosecond()).ok().map(Timestamp)
}

fn container(info: ContainerInfo) -> Container {
    let record = info.record;
    let short_id: String = record.container_id.chars().take(12).collect();
    Container {
        running: info.started_at.is_some() && info.ended.is_none(),
        started: info.started_at,
        finished: info.ended.map(|ended| ended.at),
        exit_code: info.ended.map_or(0, |ended| ended.code),
        out_of_memory: info.ended.is_some_and(|ended| ended.out_of_memory),
        pid: info.pid.unwrap_or_default(),
        id: record.container_id,
        name: record.name,
        task: record.task,
        image: record.image,
        image_id: record.image_id,
        command: record.command,
        hostname: short_id,
        labels: record.labels.into_iter().collect::<BTreeMap<_, _>>(),
        created: record.created_at,
    }
}

impl From<ImageError> for EngineError {
    fn from(error: ImageError) -> Self {
        let text = error.to_string();
        match error {
            ImageError::NotFound(name) => Self::NoSuchImage(name),
            ImageError::Pull(PullError::ManifestUnknown(_) | PullError::Denied(_)) => Self::NotFound(text),
            ImageError::Reference(_) | ImageError::Change(_) | ImageError::BadArchive(_) => {
                Self::Invalid(text)
            }
            ImageError::InUse { .. } => Self::Conflict(text),
            _ => Self::Failed(text),
        }
    }
}
