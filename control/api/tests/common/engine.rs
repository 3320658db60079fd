//! Images and containers in memory.

use std::sync::Mutex;

use async_trait::async_trait;
use control_api::engine::{
    Container, Credentials, Distribution, Engine, EngineError, Image, ImportRequest, Pulled, Removed, Upload,
};
use control_model::Timestamp;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

/// The digest of everything.
pub const DIGEST: &str = "sha256:dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd";

/// Starts with one image, `whoami:v1`.
pub struct FakeEngine {
    pub images: Mutex<Vec<Image>>,
    pub containers: Mutex<Vec<Container>>,
}

impl Default for FakeEngine {
    fn default() -> Self {
        Self { images: Mutex::new(vec![image("whoami:v1", 0xabc)]), containers: Mutex::default() }
    }
}

fn image(tag: &str, number: u64) -> Image {
    Image {
        id: format!("sha256:{number:064x}"),
        tags: vec![tag.into()],
        created: Some(Timestamp(1_700_000_000_000_000_000)),
        size_bytes: 1_234_567,
        os: "linux".into(),
        architecture: "amd64".into(),
        layers: vec![DIGEST.into()],
        ..Image::default()
    }
}

fn is_named(image: &Image, name: &str) -> bool {
    let bare = image.id.trim_start_matches("sha256:");
    image.tags.iter().any(|tag| tag == name || tag.strip_suffix(":latest") == Some(name))
        || image.id == name
        || bare.trim_start_matches('0').starts_with(name)
}

#[async_trait]
impl Engine for FakeEngine {
    async fn images(&self) -> Result<Vec<Image>, EngineError> {
        Ok(self.images.lock().expect("no panic").clone())
    }

    async fn image(&self, name: &str) -> Result<Image, EngineError> {
        let images = self.images.lock().expect("no panic");
        let found = images.iter().find(|image| is_named(image, name));
        found.cloned().ok_or_else(|| EngineError::NoSuchImage(name.into()))
    }

    async fn pull(
        &self,
        reference: &str,
        _: Option<Credentials>,
        progress: mpsc::UnboundedSender<String>,
    ) -> Result<Pulled, EngineError> {
        if reference.contains("missing") {
            return Err(EngineError::NotFound(format!(
                "manifest for {reference} not found: manifest unknown: manifest unknown"
            )));
        }
        progress.send("Copying blob dddd".into()).expect("somebody reads");
        if reference.contains("broken") {
            return Err(EngineError::Failed("unexpected EOF".into()));
        }
        let name = reference.trim_start_matches("docker.io/library/");
        self.images.lock().expect("no panic").push(image(name, 0xdef));
        Ok(Pulled { digest: DIGEST.into(), is_new: true })
    }

    async fn load(&self, mut archive: Upload) -> Result<Vec<String>, EngineError> {
        let mut bytes = Vec::new();
        archive.read_to_end(&mut bytes).await.map_err(|e| EngineError::Failed(e.to_string()))?;
        match bytes.as_slice() {
            b"an archive" => Ok(vec!["loaded:v1".into()]),
            _ => Err(EngineError::Invalid("invalid tar header".into())),
        }
    }

    async fn import(&self, mut archive: Upload, request: ImportRequest) -> Result<String, EngineError> {
        let mut bytes = Vec::new();
        archive.read_to_end(&mut bytes).await.map_err(|e| EngineError::Failed(e.to_string()))?;
        assert_eq!(bytes, b"a root file system");
        assert_eq!(request.changes, ["CMD [\"/whoami\"]"]);
        let imported = image(&request.reference, 0x123);
        let id = imported.id.clone();
        self.images.lock().expect("no panic").push(imported);
        Ok(id)
    }

    async fn tag(&self, name: &str, reference: &str) -> Result<(), EngineError> {
        let mut images = self.images.lock().expect("no panic");
        let image = images.iter_mut().find(|image| is_named(image, name));
        image.ok_or_else(|| EngineError::NoSuchImage(name.into()))?.tags.push(reference.into());
        Ok(())
    }

    async fn remove_image(&self, name: &str, _: bool) -> Result<Vec<Removed>, EngineError> {
        let mut images = self.images.lock().expect("no panic");
        let index = images.iter().position(|image| is_named(image, name));
        let gone = images.remove(index.ok_or_else(|| EngineError::NoSuchImage(name.into()))?);
        let untagged = gone.tags.into_iter().map(Removed::Untagged);
        Ok(untagged.chain([Removed::Deleted(gone.id)]).collect())
    }

    async fn distribution(&self, reference: &str) -> Result<Distribution, EngineError> {
        if !reference.contains("pinned") {
            return Err(EngineError::NotFound(format!("manifest for {reference} not found")));
        }
        Ok(Distribution {
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            digest: DIGEST.into(),
            size_bytes: 527,
            platforms: vec![("linux".into(), "amd64".into())],
        })
    }

    async fn containers(&self) -> Result<Vec<Container>, EngineError> {
        Ok(self.containers.lock().expect("no panic").clone())
    }
}
