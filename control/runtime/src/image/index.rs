//! The names table: which images there are and what they are called. One JSON file, replaced whole by rename.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::ImageError;
use super::reference::{Reference, is_sha256_hex};
use crate::files::write_durably;

/// Shortest prefix of an image id that is taken for one.
const ID_PREFIX_MIN: usize = 4;

/// One image of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Digest of the config blob, `sha256:…`: Docker's image id.
    pub id: String,
    /// Digest of the manifest in the content store.
    pub manifest: String,
    /// Digests under which registries know it, `docker.io/library/nginx@sha256:…`.
    pub repo_digests: BTreeSet<String>,
    /// RFC 3339, from the image's config; empty if it says none.
    pub created: String,
    /// Sum of the layers as stored, bytes.
    pub size_bytes: u64,
    pub labels: BTreeMap<String, String>,
}

/// All names and images. Names are in full form (`docker.io/library/nginx:latest`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageIndex {
    pub images: BTreeMap<String, ImageRecord>,
    pub names: BTreeMap<String, String>,
}

/// The index and its file.
#[derive(Debug)]
pub(crate) struct IndexFile {
    path: PathBuf,
    pub index: ImageIndex,
}

impl IndexFile {
    /// Reads the file; an absent one is an empty index.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let index = match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| ImageError::Damaged {
                what: path.display().to_string(),
                reason: error.to_string(),
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => ImageIndex::default(),
            Err(source) => return Err(ImageError::Io { path: path.to_owned(), source }),
        };
        Ok(Self { path: path.to_owned(), index })
    }

    /// Changes the index and writes it; on a failed write nothing has changed.
    pub fn update(&mut self, change: impl FnOnce(&mut ImageIndex)) -> Result<(), ImageError> {
        let mut next = self.index.clone();
        change(&mut next);
        let bytes = serde_json::to_vec_pretty(&next).expect("the index has text keys only");
        write_durably(&self.path, &bytes).map_err(ImageError::io(&self.path))?;
        self.index = next;
        Ok(())
    }
}

impl ImageIndex {
    /// The image that a user's text means: a name, a digest reference, an id, or the start of an id.
    pub fn resolve(&self, text: &str) -> Option<&ImageRecord> {
        if let Some(hex) = text.strip_prefix("sha256:") {
            return self.by_id_prefix(hex);
        }
        if is_sha256_hex(text) {
            return self.by_id_prefix(text);
        }
        let named = Reference::parse(text).ok().and_then(|reference| self.by_reference(&reference));
        named.or_else(|| self.by_id_prefix(text))
    }

    fn by_reference(&self, reference: &Reference) -> Option<&ImageRecord> {
        let Some(digest) = reference.digest() else {
            return self.names.get(&reference.to_string()).and_then(|id| self.images.get(id));
        };
        let wanted = reference.at_digest(digest);
        self.images.values().find(|image| {
            image.repo_digests.contains(&wanted)
                || (image.manifest == digest && self.has_name_in(&image.id, reference))
        })
    }

    fn has_name_in(&self, id: &str, reference: &Reference) -> bool {
        let prefix = reference.repository() + ":";
        self.names.iter().any(|(name, named)| named == id && name.starts_with(&prefix))
    }

    fn by_id_prefix(&self, hex: &str) -> Option<&ImageRecord> {
        if hex.len() < ID_PREFIX_MIN || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let from = format!("sha256:{hex}");
        let mut found = self.images.range(from.clone()..).take_while(|(id, _)| id.starts_with(&from));
        let (_, image) = found.next()?;
        found.next().is_none().then_some(image)
    }

    /// Names of an image, in familiar form, ordered.
    pub fn names_of(&self, id: &str) -> Vec<String> {
        let names = self.names.iter().filter(|(_, named)| *named == id);
        names.filter_map(|(name, _)| Reference::parse(name).ok()).map(|name| name.familiar()).collect()
    }

    /// Adds an image, or joins what is newly known of one with what was known.
    pub fn put(&mut self, image: ImageRecord, names: &[Reference]) {
        for name in names {
            self.names.insert(name.to_string(), image.id.clone());
        }
        match self.images.get_mut(&image.id) {
            Some(known) => {
                known.repo_digests.extend(image.repo_digests);
                known.manifest = image.manifest;
            }
            None => {
                self.images.insert(image.id.clone(), image);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(digit: char, repo_digests: &[&str]) -> ImageRecord {
        ImageRecord {
            id: format!("sha256:{}", digit.to_string().repeat(64)),
            manifest: format!("sha256:{}", "f".repeat(64)),
            repo_digests: repo_digests.iter().map(|&d| d.to_owned()).collect(),
            created: String::new(),
            size_bytes: 1,
            labels: BTreeMap::new(),
        }
    }

    #[test]
    fn names_digests_and_ids_resolve() {
        let digest = format!("sha256:{}", "d".repeat(64));
        let mut index = ImageIndex::default();
        let name = Reference::parse("whoami:1").expect("valid");
        index.put(image('a', &[&format!("docker.io/library/whoami@{digest}")]), &[name]);
        index.put(image('b', &[]), &[]);
        let found = |text: &str| index.resolve(text).map(|image| image.id[7..9].to_owned());
        assert_eq!(found("whoami:1"), Some("aa".into()));
        assert_eq!(found("docker.io/library/whoami:1"), Some("aa".into()));
        assert_eq!(found(&format!("whoami:other@{digest}")), Some("aa".into()));
        assert_eq!(found(&format!("whoami:1@sha256:{}", "f".repeat(64))), Some("aa".into()));
        assert_eq!(found(&format!("other@{digest}")), None);
        assert_eq!(found("whoami"), None);
        assert_eq!(found("bbbbbb"), Some("bb".into()));
        assert_eq!(found(&format!("sha256:{}", "b".repeat(64))), Some("bb".into()));
    }

    #[test]
    fn the_index_survives_reopening_and_a_damaged_one_is_said() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("index.json");
        let mut file = IndexFile::open(&path).expect("absent is empty");
        file.update(|index| index.put(image('a', &[]), &[Reference::parse("x").expect("valid")]))
            .expect("written");
        assert_eq!(IndexFile::open(&path).expect("readable").index, file.index);
        std::fs::write(&path, b"{").expect("written");
        assert!(matches!(IndexFile::open(&path), Err(ImageError::Damaged { .. })));
    }
}
