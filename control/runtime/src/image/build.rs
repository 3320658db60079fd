//! `docker import`: an image of one layer from a root file system's tar.

use oci_spec::image::{
    Arch, Config, DescriptorBuilder, HistoryBuilder, ImageConfigurationBuilder, ImageManifestBuilder,
    MediaType, Os, RootFsBuilder,
};

use super::archive::{MAGIC_LEN, Spooled, decompressor};
use super::content::Content;
use super::error::ImageError;
use super::health::with_health;

/// Stores the layer, the configuration and the manifest; gives the manifest's digest.
pub(super) fn build_image(
    content: &Content,
    layer: &Spooled,
    config: Config,
    message: &str,
) -> Result<String, ImageError> {
    check_tar(layer)?;
    // An uncompressed layer is its own diff id (image-spec, "Layer DiffID").
    let (layer_digest, layer_len) = content.put_file(&layer.path)?;
    let created = jiff::Timestamp::now().to_string();
    let history = HistoryBuilder::default().created(created.clone()).comment(message).build();
    let configuration = ImageConfigurationBuilder::default()
        .created(created)
        .architecture(if cfg!(target_arch = "aarch64") { Arch::ARM64 } else { Arch::Amd64 })
        .os(Os::Linux)
        .config(config)
        .rootfs(
            RootFsBuilder::default().typ("layers").diff_ids([layer_digest.clone()]).build().map_err(built)?,
        )
        .history([history.map_err(built)?])
        .build()
        .map_err(built)?;
    let configuration = serde_json::to_vec(&configuration).expect("it has text keys only");
    let config_digest = content.put_bytes(&configuration)?;
    let manifest = ImageManifestBuilder::default()
        .schema_version(2_u32)
        .media_type(MediaType::ImageManifest)
        .config(descriptor(MediaType::ImageConfig, &config_digest, configuration.len() as u64)?)
        .layers([descriptor(MediaType::ImageLayer, &layer_digest, layer_len)?])
        .build()
        .map_err(built)?;
    content.put_bytes(&serde_json::to_vec(&manifest).expect("it has text keys only"))
}

/// The image with this HEALTHCHECK in its configuration; gives the manifest's digest, which is another one if that is new.
pub(super) fn keep_health(
    content: &Content,
    manifest_digest: String,
    health: &serde_json::Value,
) -> Result<String, ImageError> {
    let mut manifest = content.manifest(&manifest_digest)?;
    let before = content.bytes(manifest.config().digest().as_ref())?;
    let Some(configuration) = with_health(&before, health) else { return Ok(manifest_digest) };
    let config_digest = content.put_bytes(&configuration)?;
    manifest.set_config(descriptor(MediaType::ImageConfig, &config_digest, configuration.len() as u64)?);
    content.put_bytes(&serde_json::to_vec(&manifest).expect("it has text keys only"))
}

/// The image with media types that say how its layers are kept; gives the manifest's digest, which is another one if one
/// of them said otherwise. skopeo calls a layer of an archive compressed also where it takes the blob that is here already,
/// which may not be: that of an import.
pub(super) fn with_true_layers(content: &Content, manifest_digest: String) -> Result<String, ImageError> {
    let before = content.manifest(&manifest_digest)?;
    let mut manifest = before.clone();
    let mut layers = Vec::with_capacity(before.layers().len());
    for layer in before.layers() {
        let mut layer = layer.clone();
        let begins = content.beginning::<MAGIC_LEN>(layer.digest().as_ref())?;
        layer.set_media_type(match decompressor(&begins) {
            None => MediaType::ImageLayer,
            Some("gzip") => MediaType::ImageLayerGzip,
            Some("zstd") => MediaType::ImageLayerZstd,
            Some(other) => {
                return Err(ImageError::BadArchive(format!(
                    "a layer compressed by {other} is not supported"
                )));
            }
        });
        layers.push(layer);
    }
    manifest.set_layers(layers);
    if manifest == before {
        return Ok(manifest_digest);
    }
    content.put_bytes(&serde_json::to_vec(&manifest).expect("it has text keys only"))
}

/// Docker refuses what is no tar with the words of Go's reader.
fn check_tar(layer: &Spooled) -> Result<(), ImageError> {
    let file = std::fs::File::open(&layer.path).map_err(ImageError::io(&layer.path))?;
    let bad = |_| ImageError::BadArchive("archive/tar: invalid tar header".into());
    for entry in tar::Archive::new(file).entries().map_err(bad)? {
        entry.map_err(bad)?;
    }
    Ok(())
}

pub(super) fn descriptor(
    kind: MediaType,
    digest: &str,
    size: u64,
) -> Result<oci_spec::image::Descriptor, ImageError> {
    let digest: oci_spec::image::Digest = digest
        .parse()
        .map_err(|_| ImageError::Damaged { what: "digest".into(), reason: digest.to_owned() })?;
    DescriptorBuilder::default().media_type(kind).digest(digest).size(size).build().map_err(built)
}

#[expect(clippy::needless_pass_by_value, reason = "used as a function of map_err")]
fn built(error: oci_spec::OciSpecError) -> ImageError {
    ImageError::Damaged { what: "image description".into(), reason: error.to_string() }
}
