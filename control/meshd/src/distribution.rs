//! What a registry says of an image, without getting its layers: asked through skopeo, as pulls are.

use std::future::Future;
use std::time::Duration;

use control_api::engine::{Distribution, EngineError};
use control_model::spec::RegistryCredentials;
use control_runtime::image::{ImageError, ImageStore, Reference};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// A registry that has not answered by then is not there. `service create` waits for it.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest manifest that is read: registries refuse larger ones (OCI distribution spec, "Pushing Manifests").
const MAX_MANIFEST_BYTES: usize = 4 << 20;
/// Of a manifest that does not say what it is (OCI allows it).
const DEFAULT_MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// The part of a manifest or a manifest list that is looked at.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    media_type: Option<String>,
    #[serde(default)]
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    platform: Option<Platform>,
}

/// Of a list's entry, or of an image's configuration.
#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

/// Asks the registry of `reference`.
pub async fn query(
    reference: &Reference,
    images: &ImageStore,
    credentials: Option<&RegistryCredentials>,
) -> Result<Distribution, EngineError> {
    let raw = in_time(reference, images.manifest_at_registry(reference, credentials)).await?;
    let manifest: Manifest = parse(&raw)?;
    let platforms = if manifest.manifests.is_empty() {
        let raw = in_time(reference, images.configuration_at_registry(reference, credentials)).await?;
        vec![parse::<Platform>(&raw)?]
    } else {
        manifest.manifests.into_iter().filter_map(|entry| entry.platform).collect()
    };
    Ok(Distribution {
        media_type: manifest.media_type.unwrap_or_else(|| DEFAULT_MEDIA_TYPE.into()),
        digest: digest_of(&raw),
        size_bytes: raw.len() as u64,
        platforms: platforms.into_iter().map(|p| (p.os, p.architecture)).collect(),
    })
}

async fn in_time(
    reference: &Reference,
    asking: impl Future<Output = Result<Vec<u8>, ImageError>>,
) -> Result<Vec<u8>, EngineError> {
    let silent = |_| EngineError::NotFound(format!("the registry {} does not answer", reference.domain()));
    let raw = tokio::time::timeout(TIMEOUT, asking).await.map_err(silent)?;
    let raw = raw.map_err(|error| EngineError::NotFound(error.to_string()))?;
    if raw.len() > MAX_MANIFEST_BYTES {
        return Err(EngineError::NotFound(format!("the manifest of {reference} is too large")));
    }
    Ok(raw)
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, EngineError> {
    serde_json::from_slice(bytes).map_err(|_| EngineError::Failed("the registry sent no manifest".into()))
}

/// `sha256:` and 64 hex digits.
fn digest_of(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes all");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_sha256sum() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest_of(b""), empty);
    }

    #[test]
    fn manifests_and_lists_are_told_apart() {
        let one: Manifest = parse(br#"{"mediaType":"m","config":{},"layers":[]}"#).expect("a manifest");
        assert!(one.manifests.is_empty());
        let list: Manifest =
            parse(br#"{"manifests":[{"platform":{"os":"linux","architecture":"arm64"}},{}]}"#)
                .expect("a list");
        assert_eq!(list.manifests.iter().filter(|entry| entry.platform.is_some()).count(), 1);
        assert!(parse::<Manifest>(b"<html>").is_err());
    }
}
