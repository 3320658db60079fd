//! The API's view of this node's images and containers, over the embedded runtime.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufWriter, Write};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use control_api::engine::{
    Container, ContainerChange, CpuUsage, DiskUse, Distribution, Download, Engine, EngineError, EngineEvent,
    EngineEventKind, ExecRequest, Health, HealthProbe, Image, ImageChange, ImageConfig, ImportRequest,
    InterfaceUsage, MountPoint, Output, PathStat, Process, ProcessTable, Pulled, Removed, Resize, Unpacking,
    Upload, Usage, Volume, VolumeChange,
};
use control_model::spec::RegistryCredentials;
use control_model::{OutputQuery, Timestamp};
use control_runtime::image::{ImageChanges, ImageDetails, ImageError, PullError, Reference};
use control_runtime::{
    ContainerChange as container, ContainerInfo, ContainerRecord, ControlError, CopyError, Exec, ExecError,
    ExecSpec, ImageChange as image, Oci, OutputError, Overwriting, Stage, VolumeChange as volume,
    VolumeError, VolumeSpec,
};
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{BroadcastStream, ReceiverStream};
use tokio_util::io::SyncIoBridge;

/// Of an archive: written at a time, and on their way to a client.
const PIECE_BYTES: usize = 64 << 10;
const MAX_PIECES: usize = 4;
/// Of a process that nobody saw end.
const CODE_UNKNOWN: i32 = 255;

/// The embedded runtime as the API's engine.
pub struct OciEngine {
    pub oci: Oci,
}

#[async_trait]
impl Engine for OciEngine {
    async fn images(&self) -> Result<Vec<Image>, EngineError> {
        let images = self.oci.images();
        images
            .list()
            .iter()
            .map(|(record, _)| images.inspect(&record.id).map(to_image).map_err(to_error))
            .collect()
    }

    async fn image(&self, name: &str) -> Result<Image, EngineError> {
        self.oci.images().inspect(name).map(to_image).map_err(to_error)
    }

    async fn pull(
        &self,
        reference: &str,
        credentials: Option<RegistryCredentials>,
        progress: mpsc::UnboundedSender<String>,
    ) -> Result<Pulled, EngineError> {
        let reference = parse(reference)?;
        // A client that went away misses the lines; the pull goes on.
        let report = move |line: &str| drop(progress.send(line.to_owned()));
        let before: BTreeSet<String> =
            self.oci.images().list().into_iter().map(|(image, _)| image.id).collect();
        let record =
            self.oci.images().pull(&reference, credentials.as_ref(), &report).await.map_err(to_error)?;
        Ok(Pulled { is_new: !before.contains(&record.id), digest: record.manifest })
    }

    async fn load(&self, mut archive: Upload) -> Result<Vec<String>, EngineError> {
        self.oci.images().load(&mut *archive).await.map_err(to_error)
    }

    async fn import(&self, mut archive: Upload, request: ImportRequest) -> Result<String, EngineError> {
        let name = match request.reference.as_str() {
            "" => None,
            text => parse(text)?.tagged(),
        };
        let changes = ImageChanges::parse(request.changes.iter().map(String::as_str))
            .map_err(|error| EngineError::Invalid(error.to_string()))?;
        let images = self.oci.images();
        let record = images.import(&mut *archive, name.as_ref(), &changes, &request.message).await;
        record.map(|record| record.id).map_err(to_error)
    }

    async fn tag(&self, name: &str, reference: &str) -> Result<(), EngineError> {
        let reference = parse(reference)?;
        let Some(tagged) = reference.tagged() else {
            return Err(EngineError::Invalid("refusing to create a tag with a digest reference".into()));
        };
        self.oci.images().tag(name, &tagged).map_err(to_error)
    }

    async fn remove_image(&self, name: &str, _force: bool) -> Result<Vec<Removed>, EngineError> {
        let (untagged, deleted) = self.oci.remove_image(name).await.map_err(to_error)?;
        Ok(untagged.into_iter().map(Removed::Untagged).chain(deleted.map(Removed::Deleted)).collect())
    }

    async fn distribution(
        &self,
        reference: &str,
        credentials: Option<RegistryCredentials>,
    ) -> Result<Distribution, EngineError> {
        crate::distribution::query(&parse(reference)?, self.oci.images(), credentials.as_ref()).await
    }

    async fn containers(&self) -> Result<Vec<Container>, EngineError> {
        Ok(self.oci.list_containers().into_iter().map(to_container).collect())
    }

    async fn volumes(&self) -> Result<Vec<Volume>, EngineError> {
        let all = self.blocking(Oci::volumes).await?;
        Ok(all.into_iter().map(to_volume).collect())
    }

    async fn create_volume(
        &self,
        name: &str,
        labels: BTreeMap<String, String>,
        options: BTreeMap<String, String>,
    ) -> Result<Volume, EngineError> {
        let (name, spec) = (name.to_owned(), VolumeSpec { labels, options });
        self.blocking(move |oci| oci.create_volume(&name, &spec)).await.map(to_volume)
    }

    async fn remove_volume(&self, name: &str) -> Result<u64, EngineError> {
        let name = name.to_owned();
        self.blocking(move |oci| oci.remove_volume(&name)).await
    }

    async fn disk_use(&self) -> Result<DiskUse, EngineError> {
        self.blocking(|oci| {
            let found = oci.disk_use()?;
            Ok(DiskUse { volumes: found.volumes, containers: found.containers })
        })
        .await
    }

    async fn kill(&self, container: &str, signal: &str) -> Result<(), EngineError> {
        self.oci.kill(container, signal).await.map_err(not_done)
    }

    async fn stop(
        &self,
        container: &str,
        signal: Option<&str>,
        grace: Option<Duration>,
    ) -> Result<bool, EngineError> {
        self.oci.stop(container, signal, grace).await.map_err(not_done)
    }

    async fn path_stat(&self, container: &str, path: &str) -> Result<PathStat, EngineError> {
        let (oci, id, wanted) = (self.oci.clone(), container.to_owned(), path.to_owned());
        let found = tokio::task::spawn_blocking(move || oci.path_stat(&id, &wanted)).await;
        let stat = found.map_err(|error| EngineError::Failed(error.to_string()))?;
        let stat = stat.map_err(|error| not_copied(&error, container, path))?;
        Ok(PathStat {
            name: stat.name,
            size_bytes: stat.size_bytes,
            mode: stat.mode,
            modified: Timestamp(stat.modified_ns),
            link_target: stat.link_target,
        })
    }

    async fn pack(&self, container: &str, path: &str) -> Result<Download, EngineError> {
        let (oci, id, path) = (self.oci.clone(), container.to_owned(), path.to_owned());
        let (pieces, archive) = mpsc::channel(MAX_PIECES);
        tokio::task::spawn_blocking(move || {
            let to = BufWriter::with_capacity(PIECE_BYTES, Pieces(pieces.clone()));
            let packed = oci.pack(&id, &path, to).and_then(|mut to| Ok(to.flush()?));
            if let Err(error) = packed {
                // Who has gone needs no reason.
                let _ = pieces.blocking_send(Err(std::io::Error::other(error)));
            }
        });
        Ok(ReceiverStream::new(archive).boxed())
    }

    async fn unpack(
        &self,
        container: &str,
        path: &str,
        how: Unpacking,
        archive: Upload,
    ) -> Result<(), EngineError> {
        let (oci, id, to) = (self.oci.clone(), container.to_owned(), path.to_owned());
        let overwriting = if how.keeps_kinds { Overwriting::SameKind } else { Overwriting::AnyKind };
        let from = SyncIoBridge::new(archive);
        let work = move || oci.unpack(&id, &to, (overwriting, how.is_users), from);
        let unpacked = tokio::task::spawn_blocking(work).await;
        let unpacked = unpacked.map_err(|error| EngineError::Failed(error.to_string()))?;
        unpacked.map_err(|error| not_copied(&error, container, path))
    }

    async fn top(&self, container: &str, arguments: &[String]) -> Result<ProcessTable, EngineError> {
        let table = self.oci.top(container, arguments).await.map_err(not_done)?;
        Ok(ProcessTable { titles: table.titles, rows: table.rows })
    }

    async fn usage(&self, container: &str) -> Result<Usage, EngineError> {
        let (oci, container) = (self.oci.clone(), container.to_owned());
        let read = tokio::task::spawn_blocking(move || oci.usage(&container)).await;
        read.map_err(|error| EngineError::Failed(error.to_string()))?.map(to_usage).map_err(not_done)
    }

    async fn output(&self, container: &str, query: OutputQuery) -> Result<Output, EngineError> {
        let lines = self.oci.output(container, query).map_err(|error| match error {
            OutputError::Unknown => EngineError::NotFound(format!("No such container: {container}")),
            OutputError::NotKept => EngineError::Unsupported(error.to_string()),
        })?;
        let lines = ReceiverStream::new(lines);
        Ok(lines.map_err(|error| EngineError::Failed(error.to_string())).boxed())
    }

    fn events(&self) -> BoxStream<'static, EngineEvent> {
        let events = BroadcastStream::new(self.oci.events().subscribe());
        // Who lags has missed some, and goes on.
        let told = events.filter_map(|event| std::future::ready(event.ok()));
        told.map(to_event).boxed()
    }

    async fn exec(&self, container: &str, request: &ExecRequest) -> Result<Process, EngineError> {
        let request = request.clone();
        let spec = ExecSpec {
            arguments: request.arguments,
            env: request.env,
            user: request.user,
            working_dir: request.working_dir,
            tty: request.tty,
            stdin: request.stdin,
        };
        let exec = self.oci.exec(container, &spec).map_err(|error| match error {
            ExecError::NotRunning(_) => EngineError::Conflict(error.to_string()),
            ExecError::User(_) => EngineError::Invalid(error.to_string()),
            ExecError::Io(_) => EngineError::Failed(error.to_string()),
        })?;
        let Exec { input, output, console, ended } = exec;
        let resize = move |rows, columns| {
            console.resize(rows, columns).map_err(|error| EngineError::Failed(error.to_string()))
        };
        Ok(Process {
            input,
            output: ReceiverStream::new(output).boxed(),
            resize: Resize(Arc::new(resize)),
            ended: ended.map(|code| code.unwrap_or(CODE_UNKNOWN)).boxed(),
        })
    }
}

impl OciEngine {
    /// Disks and servers may take long.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Oci) -> Result<T, VolumeError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let oci = self.oci.clone();
        let done = tokio::task::spawn_blocking(move || work(&oci)).await;
        done.map_err(|error| EngineError::Failed(error.to_string()))?.map_err(|error| {
            let text = error.to_string();
            match error {
                VolumeError::Name(_) | VolumeError::Options(..) => EngineError::Invalid(text),
                VolumeError::Unknown(_) => EngineError::NotFound(text),
                VolumeError::InUse(..) => EngineError::Conflict(text),
                VolumeError::Mount { .. } | VolumeError::Io { .. } => EngineError::Failed(text),
            }
        })
    }
}

fn not_done(error: ControlError) -> EngineError {
    match error {
        ControlError::Unknown(_) => EngineError::NotFound(error.to_string()),
        ControlError::NotRunning(_) => EngineError::Conflict(error.to_string()),
        ControlError::Signal(_) | ControlError::Ps(_) => EngineError::Invalid(error.to_string()),
        ControlError::Failed(text) => EngineError::Failed(text),
    }
}

fn not_copied(error: &CopyError, container: &str, path: &str) -> EngineError {
    match error {
        CopyError::NotFound => {
            EngineError::NotFound(format!("Could not find the file {path} in container {container}"))
        }
        CopyError::NotADirectory | CopyError::Refused(_) => EngineError::Invalid(error.to_string()),
        CopyError::ReadOnly => EngineError::Forbidden(error.to_string()),
        CopyError::Io(_) => EngineError::Failed(error.to_string()),
    }
}

/// Gives what is written to whoever reads the other end.
struct Pieces(mpsc::Sender<std::io::Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map_err(|_| std::io::Error::from(std::io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn to_usage(usage: control_runtime::Usage) -> Usage {
    let cpu = usage.cpu;
    let io = usage.io.into_iter().map(|(device, io)| (device, (io.read_bytes, io.written_bytes)));
    let interface = |one: control_runtime::InterfaceUsage| InterfaceUsage {
        rx_bytes: one.rx_bytes,
        rx_packets: one.rx_packets,
        rx_errors: one.rx_errors,
        rx_dropped: one.rx_dropped,
        tx_bytes: one.tx_bytes,
        tx_packets: one.tx_packets,
        tx_errors: one.tx_errors,
        tx_dropped: one.tx_dropped,
    };
    Usage {
        cpu: CpuUsage {
            total_ns: cpu.total_ns,
            user_ns: cpu.user_ns,
            kernel_ns: cpu.kernel_ns,
            n_periods: cpu.n_periods,
            n_throttled: cpu.n_throttled,
            throttled_ns: cpu.throttled_ns,
            host_ns: cpu.host_ns,
            n_cpus: cpu.n_cpus,
        },
        memory_bytes: usage.memory.bytes,
        memory_limit_bytes: usage.memory.limit_bytes,
        memory_parts: usage.memory.parts,
        n_pids: usage.n_pids,
        pids_limit: usage.pids_limit,
        io: io.collect(),
        interfaces: usage.interfaces.into_iter().map(|(name, one)| (name, interface(one))).collect(),
    }
}

fn to_volume(volume: control_runtime::Volume) -> Volume {
    Volume {
        name: volume.name,
        labels: volume.spec.labels,
        options: volume.spec.options,
        created: volume.created_at,
        mountpoint: volume.mountpoint.display().to_string(),
        containers: volume.containers,
    }
}

fn to_mount_point(mount: control_runtime::MountPoint) -> MountPoint {
    MountPoint {
        kind: mount.kind,
        name: mount.name,
        source: mount.source.display().to_string(),
        target: mount.target,
        read_only: mount.read_only,
    }
}

fn parse(reference: &str) -> Result<Reference, EngineError> {
    Reference::parse(reference).map_err(|error| EngineError::Invalid(error.to_string()))
}

/// The API's error of an image operation's.
pub fn to_error(error: ImageError) -> EngineError {
    let text = error.to_string();
    match error {
        ImageError::NotFound(name) => EngineError::NoSuchImage(name),
        ImageError::Pull(PullError::ManifestUnknown(_) | PullError::Denied(_)) => EngineError::NotFound(text),
        ImageError::Reference(_) | ImageError::Change(_) | ImageError::BadArchive(_) => {
            EngineError::Invalid(text)
        }
        ImageError::InUse { .. } => EngineError::Conflict(text),
        ImageError::Pull(PullError::Registry { .. })
        | ImageError::Tool { .. }
        | ImageError::Io { .. }
        | ImageError::Damaged { .. } => EngineError::Failed(text),
    }
}

fn to_image(details: ImageDetails) -> Image {
    let ImageDetails { record, names, configuration, health } = details;
    let config = configuration.config().clone().unwrap_or_default();
    Image {
        created: parse_time(&record.created),
        size_bytes: record.size_bytes,
        os: configuration.os().to_string(),
        architecture: configuration.architecture().to_string(),
        layers: configuration.rootfs().diff_ids().clone(),
        config: ImageConfig {
            env: config.env().clone().unwrap_or_default(),
            entrypoint: config.entrypoint().clone().unwrap_or_default(),
            command: config.cmd().clone().unwrap_or_default(),
            working_dir: config.working_dir().clone().unwrap_or_default(),
            user: config.user().clone().unwrap_or_default(),
            labels: config.labels().clone().unwrap_or_default().into_iter().collect::<BTreeMap<_, _>>(),
            exposed_ports: config.exposed_ports().clone().unwrap_or_default(),
            volumes: config.volumes().clone().unwrap_or_default(),
            stop_signal: config.stop_signal().clone().unwrap_or_default(),
            health,
        },
        comment: comment(&configuration),
        tags: names,
        digests: record.repo_digests.iter().map(|digest| familiar(digest)).collect(),
        id: record.id,
    }
}

/// Docker shows the last layer's comment as the image's.
fn comment(configuration: &oci_spec::image::ImageConfiguration) -> String {
    let last = configuration.history().as_ref().and_then(|history| history.last());
    last.and_then(|entry| entry.comment().clone()).unwrap_or_default()
}

/// Docker's short form of a full reference.
fn familiar(reference: &str) -> String {
    Reference::parse(reference).map_or_else(|_| reference.to_owned(), |reference| reference.familiar())
}

/// RFC 3339; nothing for an image that does not say.
fn parse_time(text: &str) -> Option<Timestamp> {
    let time: jiff::Timestamp = text.parse().ok()?;
    i64::try_from(time.as_nanosecond()).ok().map(Timestamp)
}

fn to_container(info: ContainerInfo) -> Container {
    of_record(info.record, info.health)
}

fn of_record(record: ContainerRecord, health: Option<control_runtime::Health>) -> Container {
    let host_ports = record.host_ports().cloned().collect();
    let (pid, started) = match record.stage {
        Stage::Started { pid, at } => (pid, Some(at)),
        Stage::Prepared | Stage::Starting => (0, None),
    };
    Container {
        task: record.task,
        name: record.name,
        hostname: record.hostname,
        tty: record.tty,
        log: record.log,
        host_ports,
        exposed_ports: record.exposed_ports,
        mounts: record.mounts.into_iter().map(to_mount_point).collect(),
        id: record.container_id,
        image: record.image,
        image_id: record.image_id,
        command: record.command,
        labels: record.labels,
        created: record.created_at,
        started,
        finished: record.ended.map(|ended| ended.at),
        running: started.is_some() && record.ended.is_none(),
        pid,
        exit_code: record.ended.map(|ended| ended.code).unwrap_or_default(),
        out_of_memory: record.ended.is_some_and(|ended| ended.out_of_memory),
        health: health.map(to_health),
    }
}

fn to_event(event: control_runtime::Event) -> EngineEvent {
    let kind = match event.kind {
        control_runtime::EventKind::Container { change, record } => EngineEventKind::Container {
            change: match change {
                container::Created => ContainerChange::Created,
                container::Started => ContainerChange::Started,
                container::Signalled(signal) => ContainerChange::Signalled(signal),
                container::OutOfMemory => ContainerChange::OutOfMemory,
                container::Ended => ContainerChange::Ended,
                container::Stopped => ContainerChange::Stopped,
                container::Health(status) => ContainerChange::Health(status),
                container::Removed => ContainerChange::Removed,
            },
            container: Box::new(of_record(*record, None)),
        },
        control_runtime::EventKind::Image { change, id, name } => EngineEventKind::Image {
            change: match change {
                image::Pulled => ImageChange::Pulled,
                image::Loaded => ImageChange::Loaded,
                image::Imported => ImageChange::Imported,
                image::Tagged => ImageChange::Tagged,
                image::Untagged => ImageChange::Untagged,
                image::Deleted => ImageChange::Deleted,
            },
            id,
            name,
        },
        control_runtime::EventKind::Volume { change, name } => EngineEventKind::Volume {
            change: match change {
                volume::Created => VolumeChange::Created,
                volume::Removed => VolumeChange::Removed,
            },
            name,
        },
    };
    EngineEvent { at: event.at, kind }
}

fn to_health(health: control_runtime::Health) -> Health {
    let probe = |probe: control_runtime::Probe| HealthProbe {
        start: probe.start,
        end: probe.end,
        exit_code: probe.exit_code,
        output: probe.output,
    };
    Health {
        status: health.status,
        failing_streak: health.failing_streak,
        log: health.log.into_iter().map(probe).collect(),
    }
}
