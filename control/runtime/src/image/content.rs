//! The content store: one OCI image layout whose blobs all images share. Blobs are named by what they hold, so adding
//! one is idempotent and two writers can't disturb each other.

use std::io::Read;
use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use sha2::{Digest, Sha256};

use super::error::ImageError;
use crate::files::{remove_tree, unique_suffix, write_durably};

/// Contents of a layout's `oci-layout` file (image-spec, "oci-layout file").
const LAYOUT_FILE: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
/// Read size while hashing: large enough that the hash is what costs.
const HASH_CHUNK_LEN: usize = 256 * 1024;
/// The annotation that names an image in a layout (image-spec, "Pre-Defined Annotation Keys").
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The name of the one image in a [`WorkLayout`].
const WORK_TAG: &str = "work";

/// Blobs by digest.
#[derive(Debug, Clone)]
pub(super) struct Content {
    root: PathBuf,
    scratch: PathBuf,
}

impl Content {
    /// Opens or makes the store; `scratch` is a directory on the same file system.
    pub fn open(root: PathBuf, scratch: PathBuf) -> Result<Self, ImageError> {
        let blobs = root.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).map_err(ImageError::io(&blobs))?;
        write_layout_file(&root)?;
        Ok(Self { root, scratch })
    }

    /// Where the blob is, or would be. `digest` must have passed [`hex_of`]: it becomes a path.
    fn blob_path(&self, digest: &str) -> Result<PathBuf, ImageError> {
        Ok(self.root.join("blobs/sha256").join(hex_of(digest)?))
    }

    pub fn manifest(&self, digest: &str) -> Result<ImageManifest, ImageError> {
        self.read(digest, |path| ImageManifest::from_file(path))
    }

    /// Length of the manifest blob, bytes.
    pub fn manifest_len(&self, digest: &str) -> Result<u64, ImageError> {
        let path = self.blob_path(digest)?;
        Ok(std::fs::metadata(&path).map_err(ImageError::io(&path))?.len())
    }

    pub fn configuration(&self, digest: &str) -> Result<ImageConfiguration, ImageError> {
        self.read(digest, |path| ImageConfiguration::from_file(path))
    }

    /// The blob itself. For descriptions: layers are large.
    pub fn bytes(&self, digest: &str) -> Result<Vec<u8>, ImageError> {
        let path = self.blob_path(digest)?;
        std::fs::read(&path).map_err(ImageError::io(&path))
    }

    /// The first bytes of the blob; fewer if it is shorter.
    pub fn beginning<const N: usize>(&self, digest: &str) -> Result<Vec<u8>, ImageError> {
        let path = self.blob_path(digest)?;
        let file = std::fs::File::open(&path).map_err(ImageError::io(&path))?;
        let mut bytes = Vec::with_capacity(N);
        file.take(N as u64).read_to_end(&mut bytes).map_err(ImageError::io(&path))?;
        Ok(bytes)
    }

    fn read<T>(
        &self,
        digest: &str,
        parse: impl FnOnce(&Path) -> Result<T, oci_spec::OciSpecError>,
    ) -> Result<T, ImageError> {
        parse(&self.blob_path(digest)?).map_err(|error| ImageError::Damaged {
            what: format!("blob {digest}"),
            reason: error.to_string(),
        })
    }

    /// Stores bytes; gives their digest.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<String, ImageError> {
        let digest = sha256_digest(bytes);
        let path = self.blob_path(&digest)?;
        write_durably(&path, bytes).map_err(ImageError::io(&path))?;
        Ok(digest)
    }

    /// Moves a file of the scratch directory into the store; gives its digest and its length in bytes.
    pub fn put_file(&self, file: &Path) -> Result<(String, u64), ImageError> {
        let (digest, len) = hash_file(file).map_err(ImageError::io(file))?;
        let path = self.blob_path(&digest)?;
        std::fs::rename(file, &path).map_err(ImageError::io(&path))?;
        Ok((digest, len))
    }

    /// A layout of its own for one run of a tool, over the shared blobs. `manifest` makes it hold that image.
    pub fn work_layout(&self, manifest: Option<&Descriptor>) -> Result<WorkLayout, ImageError> {
        let work = WorkLayout { path: self.scratch.join(unique_suffix()) };
        std::fs::create_dir_all(&work.path).map_err(ImageError::io(&work.path))?;
        let blobs = work.path.join("blobs");
        std::os::unix::fs::symlink(self.root.join("blobs"), &blobs).map_err(ImageError::io(&blobs))?;
        write_layout_file(&work.path)?;
        if let Some(manifest) = manifest {
            let mut manifest = manifest.clone();
            manifest.set_annotations(Some([(REF_NAME.to_owned(), WORK_TAG.to_owned())].into()));
            let index = serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] });
            let path = work.path.join("index.json");
            std::fs::write(&path, index.to_string()).map_err(ImageError::io(&path))?;
        }
        Ok(work)
    }

    /// Deletes every blob that is not in `kept`. The caller sees to it that nobody adds any meanwhile.
    pub fn sweep(&self, kept: &std::collections::BTreeSet<String>) -> Result<(), ImageError> {
        let blobs = self.root.join("blobs/sha256");
        for entry in std::fs::read_dir(&blobs).map_err(ImageError::io(&blobs))? {
            let entry = entry.map_err(ImageError::io(&blobs))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !kept.contains(&format!("sha256:{name}")) {
                std::fs::remove_file(entry.path()).map_err(ImageError::io(entry.path()))?;
            }
        }
        Ok(())
    }
}

/// A short-lived layout directory; removed when dropped (the shared blobs stay).
#[derive(Debug)]
pub(super) struct WorkLayout {
    pub path: PathBuf,
}

impl WorkLayout {
    /// The manifest that a tool left here.
    pub fn manifest(&self) -> Result<Descriptor, ImageError> {
        let path = self.path.join("index.json");
        let damaged = |reason: String| ImageError::Damaged { what: path.display().to_string(), reason };
        let index = ImageIndex::from_file(&path).map_err(|error| damaged(error.to_string()))?;
        index.manifests().first().cloned().ok_or_else(|| damaged("it has no manifest".into()))
    }

    /// How skopeo (with `oci:` before it) and umoci name the image in here.
    pub fn image_name(&self) -> String {
        format!("{}:{WORK_TAG}", self.path.display())
    }
}

impl Drop for WorkLayout {
    fn drop(&mut self) {
        let _ = remove_tree(&self.path);
    }
}

fn write_layout_file(dir: &Path) -> Result<(), ImageError> {
    let path = dir.join("oci-layout");
    write_durably(&path, LAYOUT_FILE.as_bytes()).map_err(ImageError::io(&path))
}

/// The 64 digits of a sha256 digest.
pub(super) fn hex_of(digest: &str) -> Result<&str, ImageError> {
    digest.strip_prefix("sha256:").filter(|hex| super::reference::is_sha256_hex(hex)).ok_or_else(|| {
        ImageError::Damaged { what: "digest".into(), reason: format!("{digest:?} is no sha256 digest") }
    })
}

/// `sha256:<hex>` of the bytes.
pub(crate) fn sha256_digest(bytes: &[u8]) -> String {
    format_digest(&Sha256::digest(bytes))
}

fn hash_file(path: &Path) -> std::io::Result<(String, u64)> {
    let mut file = std::fs::File::open(path)?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; HASH_CHUNK_LEN];
    let mut total = 0;
    loop {
        let len = file.read(&mut chunk)?;
        if len == 0 {
            return Ok((format_digest(&hash.finalize()), total));
        }
        hash.update(&chunk[..len]);
        total += len as u64;
    }
}

fn format_digest(hash: &[u8]) -> String {
    use std::fmt::Write;
    hash.iter().fold(String::from("sha256:"), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string succeeds");
        text
    })
}
