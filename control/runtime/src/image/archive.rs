//! What clients send for `docker load` and `docker import`: spooled to disk, decompressed, looked into.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt};

use super::content::REF_NAME;
use super::error::ImageError;
use super::skopeo::archive_source;
use crate::files::unique_suffix;

/// Longest compression magic that is looked at.
pub(super) const MAGIC_LEN: usize = 6;

/// A file in the scratch directory, removed when dropped.
#[derive(Debug)]
pub(super) struct Spooled {
    pub path: PathBuf,
}

impl Drop for Spooled {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Writes the stream to a file in `scratch`, decompressed where it is compressed (gzip, bzip2, xz, zstd).
pub(super) async fn spool(
    stream: &mut (dyn AsyncRead + Send + Unpin),
    scratch: &Path,
) -> Result<Spooled, ImageError> {
    let spooled = Spooled { path: scratch.join(unique_suffix()) };
    let io = || ImageError::io(&spooled.path);
    let mut options = tokio::fs::OpenOptions::new();
    let mut file = options.read(true).write(true).create_new(true).open(&spooled.path).await.map_err(io())?;
    tokio::io::copy(stream, &mut file).await.map_err(io())?;
    let mut magic = [0; MAGIC_LEN];
    file.rewind().await.map_err(io())?;
    let len = file.read(&mut magic).await.map_err(io())?;
    match decompressor(&magic[..len]) {
        None => Ok(spooled),
        Some(program) => decompress(program, &spooled, scratch).await,
    }
}

/// The program that takes apart what begins so; `None` if it is not compressed.
pub(super) fn decompressor(magic: &[u8]) -> Option<&'static str> {
    const MAGICS: [(&[u8], &str); 4] =
        [(b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd")];
    MAGICS.iter().find(|(start, _)| magic.starts_with(start)).map(|(_, program)| *program)
}

async fn decompress(program: &'static str, from: &Spooled, scratch: &Path) -> Result<Spooled, ImageError> {
    let to = Spooled { path: scratch.join(unique_suffix()) };
    let input = std::fs::File::open(&from.path).map_err(ImageError::io(&from.path))?;
    let output = std::fs::File::create_new(&to.path).map_err(ImageError::io(&to.path))?;
    let mut command = tokio::process::Command::new(program);
    command.arg("-dc").stdin(input).stdout(output).stderr(Stdio::piped()).kill_on_drop(true);
    // Not `output`, which would take the standard output away from the file.
    let child = command.spawn().map_err(ImageError::io(program))?;
    let done = child.wait_with_output().await.map_err(ImageError::io(program))?;
    if done.status.success() {
        return Ok(to);
    }
    Err(ImageError::BadArchive(String::from_utf8_lossy(&done.stderr).trim().to_owned()))
}

/// One image of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ArchivedImage {
    /// skopeo's name of it.
    pub source: String,
    pub names: Vec<String>,
}

/// What is in a `docker save` archive, or in an OCI one.
pub(super) fn images_of(file: &Path) -> Result<Vec<ArchivedImage>, ImageError> {
    let bad = |error: std::io::Error| ImageError::BadArchive(format!("unexpected archive: {error}"));
    let mut oci = None;
    let mut archive = tar::Archive::new(std::fs::File::open(file).map_err(ImageError::io(file))?);
    for entry in archive.entries().map_err(bad)? {
        let entry = entry.map_err(bad)?;
        let name = entry.path().map_err(bad)?.to_string_lossy().trim_start_matches("./").to_owned();
        match name.as_str() {
            "manifest.json" => return docker_images(file, entry),
            "index.json" => oci = Some(oci_images(file, entry)?),
            _ => {}
        }
    }
    oci.ok_or_else(|| ImageError::BadArchive("open manifest.json: no such file or directory".into()))
}

fn docker_images(file: &Path, manifest: impl std::io::Read) -> Result<Vec<ArchivedImage>, ImageError> {
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(rename = "RepoTags")]
        repo_tags: Option<Vec<String>>,
    }
    let items: Vec<Item> = parse(manifest)?;
    let image = |(at, item): (usize, Item)| ArchivedImage {
        source: archive_source("docker-archive", file, &format!("@{at}")),
        names: item.repo_tags.unwrap_or_default(),
    };
    Ok(items.into_iter().enumerate().map(image).collect())
}

fn oci_images(file: &Path, index: impl std::io::Read) -> Result<Vec<ArchivedImage>, ImageError> {
    let index: oci_spec::image::ImageIndex = parse(index)?;
    let image = |manifest: &oci_spec::image::Descriptor| {
        let name = manifest.annotations().as_ref().and_then(|all| all.get(REF_NAME)).cloned();
        ArchivedImage {
            source: archive_source("oci-archive", file, name.as_deref().unwrap_or_default()),
            // A bare tag names no repository: such an image is known by its id alone.
            names: name.filter(|name| name.contains([':', '/'])).into_iter().collect(),
        }
    };
    Ok(index.manifests().iter().map(image).collect())
}

fn parse<T: serde::de::DeserializeOwned>(reader: impl std::io::Read) -> Result<T, ImageError> {
    /// A description of thousands of images; more is an attack on our memory.
    const DESCRIPTION_LEN_MAX: u64 = 4 << 20;
    let mut bytes = Vec::new();
    reader
        .take(DESCRIPTION_LEN_MAX)
        .read_to_end(&mut bytes)
        .map_err(|error| ImageError::BadArchive(format!("unexpected archive: {error}")))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| ImageError::BadArchive(format!("invalid manifest: {error}")))
}
