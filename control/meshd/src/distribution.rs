//! What a registry says of an image, without getting its layers: asked through skopeo, as pulls are.

use std::collections::BTreeSet;
use std::time::Duration;

use control_api::engine::{Distribution, EngineError};
use control_runtime::image::Reference;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::process::Command;

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

/// Asks the registry of `reference`, by plain HTTP if it is one of `insecure`.
pub async fn query(reference: &Reference, insecure: &BTreeSet<String>) -> Result<Distribution, EngineError> {
    let raw = skopeo(reference, insecure, "--raw").await?;
    let manifest: Manifest = parse(&raw)?;
    let platforms = if manifest.manifests.is_empty() {
        vec![parse::<Platform>(&skopeo(reference, insecure, "--config").await?)?]
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

async fn skopeo(
    reference: &Reference,
    insecure: &BTreeSet<String>,
    what: &str,
) -> Result<Vec<u8>, EngineError> {
    let mut command = Command::new("skopeo");
    command.args(["inspect", what]).kill_on_drop(true);
    if insecure.contains(reference.domain()) {
        command.arg("--tls-verify=false");
    }
    let name = reference.digest().map_or_else(|| reference.to_string(), |digest| reference.at_digest(digest));
    command.arg(format!("docker://{name}"));
    let output = tokio::time::timeout(TIMEOUT, command.output())
        .await
        .map_err(|_| EngineError::NotFound(format!("the registry {} does not answer", reference.domain())))?
        .map_err(|error| EngineError::Failed(format!("skopeo: {error}")))?;
    if output.status.success() && output.stdout.len() <= MAX_MANIFEST_BYTES {
        return Ok(output.stdout);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let reason = text.lines().next_back().unwrap_or("no answer").trim().to_owned();
    Err(EngineError::NotFound(reason))
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
