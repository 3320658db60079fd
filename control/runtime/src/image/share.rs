//! What leaves the store: archives, pushes; and who somebody is at a registry.

use std::path::PathBuf;

use control_model::spec::RegistryCredentials;
use oci_spec::image::{Descriptor, Digest, MediaType};

use super::{ImageError, ImageRecord, ImageStore, Reference};

/// A step of an image's making.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// RFC 3339; empty if it is not said.
    pub created: String,
    pub created_by: String,
    pub comment: String,
    /// Of its layer, as it is stored; 0 where there is none.
    pub size_bytes: u64,
}

/// An archive on the disk; goes when dropped.
#[derive(Debug)]
pub struct SavedImage {
    pub path: PathBuf,
}

impl Drop for SavedImage {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl ImageStore {
    /// The last step first.
    pub fn history(&self, text: &str) -> Result<Vec<HistoryEntry>, ImageError> {
        let details = self.inspect(text)?;
        let manifest = self.content().manifest(&details.record.manifest)?;
        let mut layers = manifest.layers().iter().map(Descriptor::size);
        let steps = details.configuration.history().iter().flatten().map(|step| HistoryEntry {
            created: step.created().clone().unwrap_or_default(),
            created_by: step.created_by().clone().unwrap_or_default(),
            comment: step.comment().clone().unwrap_or_default(),
            size_bytes: if step.empty_layer() == Some(true) { 0 } else { layers.next().unwrap_or(0) },
        });
        let mut all: Vec<HistoryEntry> = steps.collect();
        all.reverse();
        Ok(all)
    }

    /// An archive as `docker load` takes it, with these names of one image.
    pub async fn save(&self, names: &[String]) -> Result<SavedImage, ImageError> {
        let mut record: Option<ImageRecord> = None;
        let mut tags = Vec::new();
        for name in names {
            let found = self.find(name).ok_or_else(|| ImageError::NotFound(name.clone()))?;
            if record.as_ref().is_some_and(|other| other.id != found.id) {
                return Err(ImageError::SeveralImages);
            }
            // An id names none of its names.
            tags.extend(Reference::parse(name).ok().and_then(|name| name.tagged()).filter(|_| {
                !found.id.trim_start_matches("sha256:").starts_with(name.trim_start_matches("sha256:"))
            }));
            record = Some(found);
        }
        let record = record.ok_or_else(|| ImageError::NotFound(String::new()))?;
        let _using = self.using_blobs().await;
        let layout = self.content().work_layout(Some(&self.descriptor(&record)?))?;
        let saved = SavedImage { path: self.scratch_file() };
        self.skopeo().save(&layout, &saved.path, &tags).await?;
        Ok(saved)
    }

    /// Puts an image into its registry; gives the digest and the length of its manifest there. `progress` gets one line at a time.
    pub async fn push(
        &self,
        reference: &Reference,
        auth: Option<&RegistryCredentials>,
        progress: &(dyn Fn(&str) + Send + Sync),
    ) -> Result<(String, u64), ImageError> {
        let record = self.find(&reference.to_string());
        let record = record.ok_or_else(|| ImageError::NotFound(reference.familiar()))?;
        let descriptor = self.descriptor(&record)?;
        let _using = self.using_blobs().await;
        let layout = self.content().work_layout(Some(&descriptor))?;
        let digest = self.skopeo().push(&layout, reference, auth, progress).await?;
        if digest == record.manifest {
            return Ok((digest, descriptor.size()));
        }
        let there = Reference::parse(&reference.at_digest(&digest))
            .map_err(|error| ImageError::Push(error.to_string()))?;
        let manifest = self.manifest_at_registry(&there, auth).await?;
        Ok((digest, manifest.len() as u64))
    }

    /// Does the registry know who this is?
    pub async fn login(&self, registry: &str, auth: &RegistryCredentials) -> Result<(), ImageError> {
        self.skopeo().login(registry, auth).await
    }

    fn descriptor(&self, record: &ImageRecord) -> Result<Descriptor, ImageError> {
        let len = self.content().manifest_len(&record.manifest)?;
        let damaged = |error: oci_spec::OciSpecError| ImageError::Damaged {
            what: record.manifest.clone(),
            reason: error.to_string(),
        };
        let digest: Digest = record.manifest.parse().map_err(damaged)?;
        Ok(Descriptor::new(MediaType::ImageManifest, len, digest))
    }
}
