//! The image store's operations.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use control_model::spec::HealthConfig;
use oci_spec::image::{Config, ImageConfiguration};
use tokio::io::AsyncRead;

use super::archive::{images_of, spool};
use super::build::{build_image, keep_health, with_true_layers};
use super::change::ImageChanges;
use super::content::{Content, hex_of, sha256_digest};
use super::error::ImageError;
use super::health::{health_of, health_value};
use super::index::{ImageRecord, IndexFile};
use super::reference::Reference;
use super::skopeo::Skopeo;
use super::unpack::unpacked;
use crate::events::{Events, ImageChange};
use crate::files::{remove_file, remove_tree, unique_suffix};
use control_model::spec::RegistryCredentials;

/// The node's images. Cheap to clone; all methods may run at the same time.
#[derive(Debug, Clone)]
pub struct ImageStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    content: Content,
    rootfs_dir: PathBuf,
    scratch: PathBuf,
    index: Mutex<IndexFile>,
    skopeo: Skopeo,
    events: Events,
    /// Adding images is shared, sweeping blobs is exclusive: fresh blobs have no manifest in the index yet.
    adding: tokio::sync::RwLock<()>,
    /// One pull per reference, one unpack per image.
    in_progress: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// An image ready to run from.
#[derive(Debug, Clone)]
pub struct LocalImage {
    pub record: ImageRecord,
    pub config: Config,
    /// The image's HEALTHCHECK.
    pub health: Option<HealthConfig>,
    /// Flattened, read-only by convention.
    pub rootfs: PathBuf,
}

/// `docker image inspect`.
#[derive(Debug, Clone)]
pub struct ImageDetails {
    pub record: ImageRecord,
    /// Familiar names, `nginx:latest`.
    pub names: Vec<String>,
    pub configuration: ImageConfiguration,
    /// Its HEALTHCHECK.
    pub health: Option<HealthConfig>,
}

impl ImageStore {
    /// Opens or makes the store in `dir`. What an earlier process left half done is removed.
    pub fn open(
        dir: &Path,
        insecure_registries: BTreeSet<String>,
        events: Events,
    ) -> Result<Self, ImageError> {
        let (rootfs_dir, scratch) = (dir.join("rootfs"), dir.join("tmp"));
        remove_tree(&scratch).map_err(ImageError::io(&scratch))?;
        for made in [&rootfs_dir, &scratch] {
            std::fs::create_dir_all(made).map_err(ImageError::io(made))?;
        }
        remove_partial_unpacks(&rootfs_dir)?;
        Ok(Self(Arc::new(Inner {
            content: Content::open(dir.join("layout"), scratch.clone())?,
            index: Mutex::new(IndexFile::open(&dir.join("index.json"))?),
            skopeo: Skopeo { insecure_registries, scratch: scratch.clone() },
            events,
            rootfs_dir,
            scratch,
            adding: tokio::sync::RwLock::default(),
            in_progress: Mutex::default(),
        })))
    }

    /// All images with their names, by id.
    pub fn list(&self) -> Vec<(ImageRecord, Vec<String>)> {
        let file = self.index();
        file.index.images.values().map(|image| (image.clone(), file.index.names_of(&image.id))).collect()
    }

    /// The image that `text` (name, digest reference, id, start of an id) means.
    pub fn find(&self, text: &str) -> Option<ImageRecord> {
        self.index().index.resolve(text).cloned()
    }

    /// Everything known of an image.
    pub fn inspect(&self, text: &str) -> Result<ImageDetails, ImageError> {
        let (record, names) = {
            let file = self.index();
            let record = file.index.resolve(text).ok_or_else(|| ImageError::NotFound(text.to_owned()))?;
            (record.clone(), file.index.names_of(&record.id))
        };
        let configuration = self.0.content.configuration(&record.id)?;
        let health = health_of(&self.0.content.bytes(&record.id)?);
        Ok(ImageDetails { record, names, configuration, health })
    }

    /// The local image, unpacked.
    pub async fn local(&self, text: &str) -> Result<LocalImage, ImageError> {
        let record = self.find(text).ok_or_else(|| ImageError::NotFound(text.to_owned()))?;
        let only_one = self.only_one(&record.id);
        let _guard = only_one.lock().await;
        let rootfs = unpacked(&self.0.content, &record, &self.0.rootfs_dir).await?;
        let config = self.0.content.configuration(&record.id)?.config().clone().unwrap_or_default();
        let health = health_of(&self.0.content.bytes(&record.id)?);
        Ok(LocalImage { record, config, health, rootfs })
    }

    /// The manifest, or list of them, that its registry has, byte for byte.
    pub async fn manifest_at_registry(
        &self,
        reference: &Reference,
        auth: Option<&RegistryCredentials>,
    ) -> Result<Vec<u8>, ImageError> {
        self.0.skopeo.raw_manifest(reference, auth).await
    }

    /// The configuration that it has for an image, byte for byte.
    pub async fn configuration_at_registry(
        &self,
        reference: &Reference,
        auth: Option<&RegistryCredentials>,
    ) -> Result<Vec<u8>, ImageError> {
        self.0.skopeo.raw_configuration(reference, auth).await
    }

    /// Gets the image from its registry, whether it is here or not. `progress` gets one line at a time.
    pub async fn pull(
        &self,
        reference: &Reference,
        auth: Option<&RegistryCredentials>,
        progress: &(dyn Fn(&str) + Send + Sync),
    ) -> Result<ImageRecord, ImageError> {
        let only_one = self.only_one(&reference.to_string());
        let _guard = only_one.lock().await;
        let _adding = self.0.adding.read().await;
        let digest = match reference.digest() {
            Some(digest) => digest.to_owned(),
            None => sha256_digest(&self.0.skopeo.raw_manifest(reference, auth).await?),
        };
        // By digest, so that a tag moved between the two requests can't mix two images.
        let at_digest = reference.at_digest(&digest);
        let work = self.0.content.work_layout(None)?;
        let pinned = Reference::parse(&at_digest)?;
        self.0.skopeo.pull(&pinned, auth, &work, progress).await?;
        let mut manifest = work.manifest()?.digest().to_string();
        // Another digest: it was converted, or chosen from a list of images.
        if manifest != digest {
            let source = self.0.skopeo.raw_configuration(&pinned, auth).await?;
            manifest = self.with_health_of(manifest, &source)?;
        }
        let record = self.add(&manifest, reference.tagged().as_slice(), Some(at_digest)).await?;
        self.0.events.image(ImageChange::Pulled, &reference.familiar(), &reference.familiar_repository());
        Ok(record)
    }

    /// `docker load`: adds every image of the archive. Gives what Docker prints for each: a name or an id.
    pub async fn load(&self, stream: &mut (dyn AsyncRead + Send + Unpin)) -> Result<Vec<String>, ImageError> {
        let _adding = self.0.adding.read().await;
        let spooled = spool(stream, &self.0.scratch).await?;
        let path = spooled.path.clone();
        let images = tokio::task::spawn_blocking(move || images_of(&path)).await.expect("does not panic")?;
        let mut loaded = Vec::new();
        for image in images {
            let names =
                image.names.iter().map(|name| Reference::parse(name)).collect::<Result<Vec<_>, _>>()?;
            let work = self.0.content.work_layout(None)?;
            self.0.skopeo.copy_archive(&image.source, &work).await?;
            let source = self.0.skopeo.raw_configuration_of_archive(&image.source).await?;
            let manifest = with_true_layers(&self.0.content, work.manifest()?.digest().to_string())?;
            let manifest = self.with_health_of(manifest, &source)?;
            let record = self.add(&manifest, &names, None).await?;
            self.0.events.image(ImageChange::Loaded, &record.id, &record.id);
            loaded.extend(names.iter().map(Reference::familiar));
            if names.is_empty() {
                loaded.push(record.id);
            }
        }
        Ok(loaded)
    }

    /// `docker import`: an image of one layer from a (maybe compressed) tar of a root file system.
    pub async fn import(
        &self,
        stream: &mut (dyn AsyncRead + Send + Unpin),
        name: Option<&Reference>,
        changes: &ImageChanges,
        message: &str,
    ) -> Result<ImageRecord, ImageError> {
        let _adding = self.0.adding.read().await;
        let layer = spool(stream, &self.0.scratch).await?;
        let (content, config, message) = (self.0.content.clone(), changes.to_config(), message.to_owned());
        let health = changes.health();
        let build = move || {
            let manifest = build_image(&content, &layer, config, &message)?;
            match health {
                Some(health) => keep_health(&content, manifest, &health),
                None => Ok(manifest),
            }
        };
        let manifest = tokio::task::spawn_blocking(build).await.expect("does not panic")?;
        let record = self.add(&manifest, name.map(std::slice::from_ref).unwrap_or_default(), None).await?;
        self.0.events.image(ImageChange::Imported, &record.id, &record.id);
        Ok(record)
    }

    /// Gives an image a further name.
    pub fn tag(&self, text: &str, name: &Reference) -> Result<(), ImageError> {
        let mut file = self.index();
        let id = file.index.resolve(text).ok_or_else(|| ImageError::NotFound(text.to_owned()))?.id.clone();
        file.update(|index| {
            index.names.insert(name.to_string(), id.clone());
        })?;
        self.0.events.image(ImageChange::Tagged, &id, &name.familiar());
        Ok(())
    }

    /// Takes the name from the image, and removes the image with its last name. `user` says which container uses an
    /// image id. Gives the removed name and, where the image went, its id.
    pub async fn remove(
        &self,
        text: &str,
        user: &(dyn Fn(&str) -> Option<String> + Send + Sync),
    ) -> Result<(Vec<String>, Option<String>), ImageError> {
        let _nobody_adds = self.0.adding.write().await;
        let (record, untagged) = self.forget_names(text, user)?;
        for _ in &untagged {
            self.0.events.image(ImageChange::Untagged, &record.id, &record.id);
        }
        if self.index().index.names.values().any(|id| *id == record.id) {
            return Ok((untagged, None));
        }
        self.index().update(|index| {
            index.images.remove(&record.id);
        })?;
        let rootfs = self.0.rootfs_dir.join(hex_of(&record.id)?);
        remove_tree(&rootfs).map_err(ImageError::io(&rootfs))?;
        remove_file(&rootfs.with_extension("lock")).map_err(ImageError::io(&rootfs))?;
        self.0.content.sweep(&self.referenced_blobs()?)?;
        self.0.events.image(ImageChange::Deleted, &record.id, &record.id);
        Ok((untagged, Some(record.id)))
    }

    fn forget_names(
        &self,
        text: &str,
        user: &(dyn Fn(&str) -> Option<String> + Send + Sync),
    ) -> Result<(ImageRecord, Vec<String>), ImageError> {
        let mut file = self.index();
        let record = file.index.resolve(text).ok_or_else(|| ImageError::NotFound(text.to_owned()))?.clone();
        let all = file.index.names.iter().filter(|(_, id)| **id == record.id).map(|(name, _)| name.clone());
        let all: BTreeSet<String> = all.collect();
        let named =
            Reference::parse(text).ok().map(|name| name.to_string()).filter(|name| all.contains(name));
        let gone = named.map_or_else(|| all.clone(), |name| BTreeSet::from([name]));
        if gone == all
            && let Some(container) = user(&record.id)
        {
            return Err(ImageError::InUse { name: text.to_owned(), container, image: record.id });
        }
        file.update(|index| index.names.retain(|name, _| !gone.contains(name)))?;
        let familiar = gone.iter().filter_map(|name| Reference::parse(name).ok()).map(|name| name.familiar());
        Ok((record, familiar.collect()))
    }

    /// The image with the HEALTHCHECK that its source's configuration has.
    fn with_health_of(&self, manifest: String, source: &[u8]) -> Result<String, ImageError> {
        match health_value(source) {
            Some(health) => keep_health(&self.0.content, manifest, &health),
            None => Ok(manifest),
        }
    }

    fn referenced_blobs(&self) -> Result<BTreeSet<String>, ImageError> {
        let images: Vec<ImageRecord> = self.index().index.images.values().cloned().collect();
        let mut kept = BTreeSet::new();
        for image in images {
            let manifest = self.0.content.manifest(&image.manifest)?;
            kept.extend(manifest.layers().iter().map(|layer| layer.digest().to_string()));
            kept.extend([image.id, image.manifest]);
        }
        Ok(kept)
    }

    /// Unpacks an image whose blobs are in the content store, then names it: what has a name can be run.
    async fn add(
        &self,
        manifest_digest: &str,
        names: &[Reference],
        repo_digest: Option<String>,
    ) -> Result<ImageRecord, ImageError> {
        let manifest = self.0.content.manifest(manifest_digest)?;
        let id = manifest.config().digest().to_string();
        let configuration = self.0.content.configuration(&id)?;
        let record = ImageRecord {
            manifest: manifest_digest.to_owned(),
            repo_digests: repo_digest.into_iter().collect(),
            created: configuration.created().clone().unwrap_or_default(),
            size_bytes: manifest.layers().iter().map(oci_spec::image::Descriptor::size).sum(),
            labels: configuration.labels_of_config().cloned().unwrap_or_default().into_iter().collect(),
            id,
        };
        let only_one = self.only_one(&record.id);
        let _guard = only_one.lock().await;
        unpacked(&self.0.content, &record, &self.0.rootfs_dir).await?;
        self.index().update(|index| index.put(record.clone(), names))?;
        Ok(record)
    }

    pub(super) fn content(&self) -> &Content {
        &self.0.content
    }

    pub(super) fn skopeo(&self) -> &Skopeo {
        &self.0.skopeo
    }

    /// A name for a file that goes when the store is opened again, if not before.
    pub(super) fn scratch_file(&self) -> PathBuf {
        self.0.scratch.join(unique_suffix())
    }

    /// Nobody sweeps blobs for as long as it is held.
    pub(super) async fn using_blobs(&self) -> tokio::sync::RwLockReadGuard<'_, ()> {
        self.0.adding.read().await
    }

    fn index(&self) -> MutexGuard<'_, IndexFile> {
        self.0.index.lock().expect("nobody panics while holding the index")
    }

    fn only_one(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut in_progress = self.0.in_progress.lock().expect("nobody panics while holding the table");
        in_progress.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(in_progress.entry(key.to_owned()).or_default())
    }
}

fn remove_partial_unpacks(rootfs_dir: &Path) -> Result<(), ImageError> {
    for entry in std::fs::read_dir(rootfs_dir).map_err(ImageError::io(rootfs_dir))? {
        let path = entry.map_err(ImageError::io(rootfs_dir))?.path();
        if path.extension().is_some_and(|suffix| suffix.to_string_lossy().starts_with("tmp-")) {
            remove_tree(&path).map_err(ImageError::io(&path))?;
        }
    }
    Ok(())
}
