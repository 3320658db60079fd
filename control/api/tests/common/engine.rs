//! Images and containers in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use control_api::engine::{
    Container, CpuUsage, DiskUse, Distribution, Download, Engine, EngineError, EngineEvent, ExecRequest,
    HistoryEntry, Image, ImportRequest, InterfaceUsage, LocalEngine, Output, PathStat, Process, ProcessTable,
    Pulled, Pushed, Removed, Resize, Unpacking, Upload, Usage, Volume,
};
use control_model::spec::{ANONYMOUS_VOLUME_LABEL, RegistryCredentials};
use control_model::{
    NodeId, OutputLine, OutputPiece, OutputPosition, OutputQuery, OutputStream, Task, Timestamp,
};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::BroadcastStream;

use super::standalone::Lives;

/// The digest of everything.
pub const DIGEST: &str = "sha256:dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd";

/// Processors of the fake host.
pub const N_CPUS: u64 = 2;

/// Starts with one image, `whoami:v1`.
pub struct FakeEngine {
    pub images: Mutex<Vec<Image>>,
    pub containers: Mutex<Vec<Container>>,
    /// By container.
    pub outputs: Mutex<BTreeMap<String, Vec<OutputLine>>>,
    pub events: broadcast::Sender<EngineEvent>,
    pub volumes: Mutex<Vec<Volume>>,
    /// At what containers use.
    pub n_looks: AtomicUsize,
    /// So many answers of other nodes break off behind their first piece.
    pub n_breaks: AtomicUsize,
    /// Containers whose output can't be read.
    pub unreadable: Mutex<BTreeSet<String>>,
    /// Archives that were put into containers, and where.
    pub unpacked: Mutex<Vec<(String, Unpacking, Vec<u8>)>>,
    /// Signals and times of the stops that had some.
    pub stops: Mutex<Vec<(Option<String>, Option<Duration>)>>,
    pub lives: Mutex<Lives>,
}

impl FakeEngine {
    /// That of one node: its containers alone.
    pub fn of(&self, node: NodeId) -> Self {
        let is_its = |one: &&Container| {
            one.labels.get("com.docker.swarm.node.id").is_some_and(|id| *id == node.to_string())
        };
        let containers = self.containers.lock().expect("no panic").iter().filter(is_its).cloned().collect();
        let outputs = self.outputs.lock().expect("no panic").clone();
        let unreadable = self.unreadable.lock().expect("no panic").clone();
        Self {
            containers: Mutex::new(containers),
            outputs: Mutex::new(outputs),
            unreadable: Mutex::new(unreadable),
            ..Self::default()
        }
    }
}

impl Default for FakeEngine {
    fn default() -> Self {
        Self {
            images: Mutex::new(vec![image("whoami:v1", 0xabc)]),
            containers: Mutex::default(),
            outputs: Mutex::default(),
            events: broadcast::Sender::new(16),
            volumes: Mutex::default(),
            n_looks: AtomicUsize::new(0),
            n_breaks: AtomicUsize::new(0),
            unreadable: Mutex::default(),
            unpacked: Mutex::default(),
            stops: Mutex::default(),
            lives: Mutex::default(),
        }
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
    async fn containers(&self) -> Result<Vec<Container>, EngineError> {
        Ok(self.containers.lock().expect("no panic").clone())
    }

    async fn output(&self, container: &str, query: OutputQuery) -> Result<Output, EngineError> {
        if self.unreadable.lock().expect("no panic").contains(container) {
            return Err(EngineError::Failed("the disk is gone".into()));
        }
        let outputs = self.outputs.lock().expect("no panic");
        let lines = outputs.get(container).cloned().unwrap_or_default();
        let upto = OutputPosition { file: 1, offset: lines.len() as u64 };
        let last = query.tail.map_or(0, |tail| lines.len().saturating_sub(tail));
        let first = query.after.map_or(last, |after| usize::try_from(after.offset).expect("small"));
        let lines: Vec<_> = lines.into_iter().skip(first).filter(|line| query.wants(line)).collect();
        let lines = futures::stream::iter([Ok(OutputPiece { lines, upto })]);
        Ok(if query.follow { lines.chain(futures::stream::pending()).boxed() } else { lines.boxed() })
    }
}

#[async_trait]
impl LocalEngine for FakeEngine {
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
        _: Option<RegistryCredentials>,
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

    async fn history(&self, name: &str) -> Result<Vec<HistoryEntry>, EngineError> {
        self.image(name).await?;
        let step = |created_by: &str, size_bytes| HistoryEntry {
            created_by: created_by.to_owned(),
            size_bytes,
            ..HistoryEntry::default()
        };
        Ok(vec![step("CMD /whoami", 0), step("COPY whoami /", 1_234_567)])
    }

    async fn save(&self, names: &[String]) -> Result<Download, EngineError> {
        self.image(&names[0]).await?;
        Ok(futures::stream::iter([Ok(names.join(" ").into())]).boxed())
    }

    async fn push(
        &self,
        reference: &str,
        credentials: Option<RegistryCredentials>,
        progress: mpsc::UnboundedSender<String>,
    ) -> Result<Pushed, EngineError> {
        if credentials.is_none() {
            return Err(EngineError::Failed("denied: requested access to the resource is denied".into()));
        }
        progress.send(format!("Copying {reference}")).expect("somebody listens");
        Ok(Pushed { digest: DIGEST.to_owned(), size_bytes: 528 })
    }

    async fn login(&self, registry: &str, credentials: &RegistryCredentials) -> Result<(), EngineError> {
        if credentials.password == "open sesame" {
            return Ok(());
        }
        Err(EngineError::Unauthorized(format!("login attempt to {registry} failed: unauthorized")))
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

    async fn distribution(
        &self,
        reference: &str,
        _: Option<RegistryCredentials>,
    ) -> Result<Distribution, EngineError> {
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

    fn events(&self) -> BoxStream<'static, EngineEvent> {
        let events = BroadcastStream::new(self.events.subscribe());
        events.map(|event| event.expect("the test is not so fast")).boxed()
    }

    async fn volumes(&self) -> Result<Vec<Volume>, EngineError> {
        Ok(self.volumes.lock().expect("no panic").clone())
    }

    async fn create_volume(
        &self,
        name: &str,
        mut labels: BTreeMap<String, String>,
        options: BTreeMap<String, String>,
    ) -> Result<Volume, EngineError> {
        let mut volumes = self.volumes.lock().expect("no panic");
        if let Some(known) = volumes.iter().find(|volume| volume.name == name) {
            return Ok(known.clone());
        }
        let name = if name.is_empty() { "drawn" } else { name };
        if name == "drawn" {
            labels.insert(ANONYMOUS_VOLUME_LABEL.into(), String::new());
        }
        let created = Timestamp(1_700_000_000_000_000_000);
        let mountpoint = format!("/volumes/{name}/_data");
        let volume =
            Volume { name: name.into(), labels, options, created, mountpoint, containers: Vec::new() };
        volumes.push(volume.clone());
        volumes.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(volume)
    }

    /// Each has 10 bytes.
    async fn remove_volume(&self, name: &str) -> Result<u64, EngineError> {
        let mut volumes = self.volumes.lock().expect("no panic");
        let at = volumes.iter().position(|volume| volume.name == name);
        let at = at.ok_or_else(|| EngineError::NotFound(format!("get {name}: no such volume")))?;
        if let [user, ..] = volumes[at].containers.as_slice() {
            return Err(EngineError::Conflict(format!("remove {name}: volume is in use - [{user}]")));
        }
        volumes.remove(at);
        Ok(10)
    }

    async fn disk_use(&self) -> Result<DiskUse, EngineError> {
        let volumes =
            self.volumes.lock().expect("no panic").iter().map(|one| (one.name.clone(), 1000)).collect();
        let containers =
            self.containers.lock().expect("no panic").iter().map(|one| (one.id.clone(), 500)).collect();
        Ok(DiskUse { volumes, containers })
    }

    /// One that runs has no end by `SIGTERM`.
    async fn kill(&self, container: &str, signal: &str) -> Result<(), EngineError> {
        let mut containers = self.containers.lock().expect("no panic");
        let found = containers.iter_mut().find(|one| one.id == container && one.running);
        let found =
            found.ok_or_else(|| EngineError::Conflict(format!("container {container} is not running")))?;
        match signal {
            "SIGKILL" | "KILL" | "9" => found.running = false,
            "SIGTERM" | "SIGHUP" => {}
            other => return Err(EngineError::Invalid(format!("invalid signal: {other}"))),
        }
        Ok(())
    }

    async fn stop(
        &self,
        container: &str,
        signal: Option<&str>,
        grace: Option<Duration>,
    ) -> Result<bool, EngineError> {
        if signal.is_some() || grace.is_some() {
            self.stops.lock().expect("no panic").push((signal.map(str::to_owned), grace));
        }
        let did_run = self.kill(container, "SIGKILL").await.is_ok();
        if did_run {
            self.end(container, 0);
        }
        Ok(did_run)
    }

    /// Every container has one file, `/etc/motd`.
    async fn path_stat(&self, container: &str, path: &str) -> Result<PathStat, EngineError> {
        let (name, mode) = match path.trim_end_matches('/') {
            "/etc/motd" => ("motd", 0o100_644),
            "/etc" => ("etc", 0o040_755),
            _ => {
                let words = format!("Could not find the file {path} in container {container}");
                return Err(EngineError::NotFound(words));
            }
        };
        let modified = Timestamp(1_700_000_000_000_000_000);
        Ok(PathStat { name: name.into(), size_bytes: 5, mode, modified, link_target: String::new() })
    }

    async fn pack(&self, container: &str, path: &str) -> Result<Download, EngineError> {
        self.path_stat(container, path).await?;
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        header.set_mode(0o644);
        archive.append_data(&mut header, "motd", &b"hello"[..]).expect("memory takes it");
        let archive = archive.into_inner().expect("memory takes it");
        Ok(futures::stream::iter([Ok(archive.into())]).boxed())
    }

    async fn unpack(
        &self,
        _: &str,
        path: &str,
        how: Unpacking,
        mut archive: Upload,
    ) -> Result<(), EngineError> {
        let mut bytes = Vec::new();
        archive.read_to_end(&mut bytes).await.map_err(|error| EngineError::Failed(error.to_string()))?;
        self.unpacked.lock().expect("no panic").push((path.to_owned(), how, bytes));
        Ok(())
    }

    async fn top(&self, _: &str, arguments: &[String]) -> Result<ProcessTable, EngineError> {
        let titles = ["PID", "CMD"].map(String::from).into();
        Ok(ProcessTable { titles, rows: vec![vec!["7".into(), arguments.join(" ")]] })
    }

    /// Each look finds a second more: half of what two processors have.
    async fn usage(&self, container: &str) -> Result<Usage, EngineError> {
        const SECOND_NS: u64 = 1_000_000_000;
        let containers = self.containers.lock().expect("no panic");
        let runs = containers.iter().any(|one| one.id == container && one.running);
        if !runs {
            return Err(EngineError::Conflict(format!("container {container} is not running")));
        }
        let n_looks = self.n_looks.fetch_add(1, Ordering::SeqCst) as u64 + 1;
        let cpu = CpuUsage {
            total_ns: n_looks * SECOND_NS / 2,
            host_ns: n_looks * 2 * SECOND_NS,
            n_cpus: N_CPUS,
            ..CpuUsage::default()
        };
        let eth0 = InterfaceUsage { rx_bytes: 1000, tx_bytes: 2000, ..InterfaceUsage::default() };
        Ok(Usage {
            cpu,
            memory_bytes: 3 << 20,
            memory_limit_bytes: 8 << 20,
            memory_parts: [("inactive_file".to_owned(), 1 << 20)].into(),
            n_pids: 4,
            pids_limit: None,
            io: [((8, 0), (4096, 8192))].into(),
            interfaces: [("eth0".to_owned(), eth0)].into(),
        })
    }

    /// What there is; who follows waits for ever.
    /// `echo` and `cat` do what they always do, `tell` says how it was called, and everything else fails with 3.
    async fn exec(&self, _: &str, request: &ExecRequest) -> Result<Process, EngineError> {
        let said = |stream, text: String| futures::stream::iter([(stream, text.into_bytes())]).boxed();
        let (mut input, mut code) = (None::<Box<dyn AsyncWrite + Send + Unpin>>, 0);
        let words: Vec<&str> = request.arguments.iter().map(String::as_str).collect();
        let output = match words.as_slice() {
            ["echo", rest @ ..] => said(OutputStream::Stdout, rest.join(" ") + "\n"),
            ["tell"] => {
                let ExecRequest { env, user, working_dir, tty, stdin, .. } = request;
                said(OutputStream::Stdout, format!("{env:?} {user} {working_dir} {tty} {stdin}\n"))
            }
            ["cat"] => {
                let (writer, reader) = tokio::io::duplex(1024);
                input = Some(Box::new(writer));
                let bytes = tokio_util::io::ReaderStream::new(reader);
                bytes.map(|bytes| (OutputStream::Stdout, bytes.expect("in memory").to_vec())).boxed()
            }
            _ => {
                code = 3;
                said(OutputStream::Stderr, "it failed\n".to_owned())
            }
        };
        Ok(Process { input, output, resize: Resize::none(), ended: Box::pin(async move { code }) })
    }
}

/// A container of the task on its node.
pub fn container(task: &Task) -> Container {
    let label = |key: &str, value: String| (format!("com.docker.swarm.{key}"), value);
    let node = task.node.map(|node| node.to_string()).unwrap_or_default();
    let labels = [
        label("node.id", node),
        label("service.id", task.service.to_string()),
        label("task.id", task.id.to_string()),
    ];
    Container {
        id: task.id.container_id(),
        name: task.name(),
        task: task.id,
        own: None,
        image: "whoami:v1".into(),
        image_id: image("whoami:v1", 0xabc).id,
        command: vec!["/whoami".into()],
        env: task.spec.container.env.clone(),
        user: task.spec.container.user.clone(),
        working_dir: "/".into(),
        hostname: "web".into(),
        tty: task.spec.container.tty,
        log: task.spec.log_driver.clone().unwrap_or_default(),
        host_ports: Vec::new(),
        exposed_ports: Vec::new(),
        mounts: Vec::new(),
        labels: BTreeMap::from(labels),
        created: Timestamp(0),
        started: Some(Timestamp(0)),
        finished: None,
        running: true,
        pid: 77,
        exit_code: 0,
        out_of_memory: false,
        health: None,
    }
}
