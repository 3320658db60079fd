//! The API's view of this node's images and containers, over the embedded runtime.

mod convert;
mod docker;
mod standalone;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufWriter, Write};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use control_api::ApiVersion;
use control_api::engine::{
    Container, DiskUse, Distribution, Download, Engine, EngineError, EngineEvent, ExecRequest, HistoryEntry,
    Image, ImportRequest, LocalEngine, Output, PathStat, Process, ProcessTable, Pulled, Pushed, Removed,
    Resize, Unpacking, Upload, Usage, Volume,
};
use control_api::passage::Passage;
use control_model::spec::RegistryCredentials;
use control_model::{OutputQuery, Timestamp};
use control_runtime::image::ImageChanges;
use control_runtime::is_of_sandbox;
use control_runtime::{
    Exec, ExecError, ExecSpec, Oci, OutputError, Overwriting, Standalone, VolumeError, VolumeSpec,
};
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::{BroadcastStream, ReceiverStream};
use tokio_util::io::{ReaderStream, SyncIoBridge};

use self::convert::{
    not_copied, not_done, not_standing, parse, parse_time, to_container, to_error, to_event, to_image,
    to_usage, to_volume,
};
use self::docker::HostEngine;
use crate::host::Containers;

/// Of an archive: written at a time, and on their way to a client.
const PIECE_BYTES: usize = 64 << 10;
const MAX_PIECES: usize = 4;
/// Archives that are made or unpacked at a time: each has a thread for as long as its client takes. One more is refused, for what it
/// would wait for may wait for it.
static COPIES: Semaphore = Semaphore::const_new(16);
/// Of a process that nobody saw end.
const CODE_UNKNOWN: i32 = 255;

/// This node's containers as the API sees them.
pub enum NodeEngine {
    Own(Arc<OciEngine>),
    OfDocker(Arc<HostEngine>, Passage),
}

impl NodeEngine {
    pub fn of(containers: &Containers) -> Self {
        match containers {
            Containers::Own(oci, standalone) => {
                Self::Own(Arc::new(OciEngine { oci: oci.clone(), standalone: standalone.clone() }))
            }
            Containers::OfDocker(docker) => {
                let passage = Passage::new(docker.socket(), ApiVersion(docker.api_minor()), is_of_sandbox);
                Self::OfDocker(Arc::new(HostEngine { docker: docker.clone() }), passage)
            }
        }
    }

    pub fn of_tasks(&self) -> Arc<dyn Engine> {
        match self {
            Self::Own(engine) => engine.clone(),
            Self::OfDocker(engine, _) => engine.clone(),
        }
    }

    pub fn own(&self) -> Option<Arc<dyn LocalEngine>> {
        match self {
            Self::Own(engine) => Some(engine.clone()),
            Self::OfDocker(..) => None,
        }
    }

    pub fn passage(&self) -> Option<Passage> {
        match self {
            Self::Own(_) => None,
            Self::OfDocker(_, passage) => Some(passage.clone()),
        }
    }
}

/// The embedded runtime as the API's engine.
pub struct OciEngine {
    pub oci: Oci,
    /// Those containers that no service made.
    pub standalone: Standalone,
}

#[async_trait]
impl Engine for OciEngine {
    async fn containers(&self) -> Result<Vec<Container>, EngineError> {
        let phase = |task| self.standalone.phase(task);
        let all = self.oci.list_containers().into_iter();
        Ok(all.map(|one| to_container(phase(one.record.task), one)).collect())
    }

    async fn output(&self, container: &str, query: OutputQuery) -> Result<Output, EngineError> {
        let lines = self.oci.output(container, query).map_err(|error| match error {
            OutputError::Unknown => EngineError::NotFound(format!("No such container: {container}")),
            OutputError::NotKept => EngineError::Unsupported(error.to_string()),
        })?;
        let lines = ReceiverStream::new(lines);
        Ok(lines.map_err(|error| EngineError::Failed(error.to_string())).boxed())
    }
}

#[async_trait]
impl LocalEngine for OciEngine {
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

    async fn history(&self, name: &str) -> Result<Vec<HistoryEntry>, EngineError> {
        let steps = self.oci.images().history(name).map_err(to_error)?;
        let step = |step: control_runtime::image::HistoryEntry| HistoryEntry {
            created: parse_time(&step.created),
            created_by: step.created_by,
            comment: step.comment,
            size_bytes: step.size_bytes,
        };
        Ok(steps.into_iter().map(step).collect())
    }

    async fn save(&self, names: &[String]) -> Result<Download, EngineError> {
        let saved = self.oci.images().save(names).await.map_err(to_error)?;
        let file = tokio::fs::File::open(&saved.path).await;
        let file = file.map_err(|error| EngineError::Failed(error.to_string()))?;
        // The file goes with the stream.
        let stream = ReaderStream::with_capacity(file, PIECE_BYTES).map(move |piece| {
            let _saved = &saved;
            piece
        });
        Ok(stream.boxed())
    }

    async fn push(
        &self,
        reference: &str,
        credentials: Option<RegistryCredentials>,
        progress: mpsc::UnboundedSender<String>,
    ) -> Result<Pushed, EngineError> {
        let reference = parse(reference)?;
        let report = move |line: &str| drop(progress.send(line.to_owned()));
        let pushed = self.oci.images().push(&reference, credentials.as_ref(), &report).await;
        let (digest, size_bytes) = pushed.map_err(to_error)?;
        Ok(Pushed { digest, size_bytes })
    }

    async fn login(&self, registry: &str, credentials: &RegistryCredentials) -> Result<(), EngineError> {
        self.oci.images().login(registry, credentials).await.map_err(to_error)
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
        if self.is_own(container) {
            return self.standalone.kill(container, signal).await.map_err(not_standing);
        }
        self.oci.kill(container, signal).await.map_err(not_done)
    }

    async fn stop(
        &self,
        container: &str,
        signal: Option<&str>,
        grace: Option<Duration>,
    ) -> Result<bool, EngineError> {
        if self.is_own(container) {
            return self.standalone.stop(container, signal, grace).await.map_err(not_standing);
        }
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
        let turn = COPIES.try_acquire().map_err(|_| busy())?;
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
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
        let how = control_runtime::Unpacking { overwriting, is_users: how.is_users };
        let turn = COPIES.try_acquire().map_err(|_| busy())?;
        let from = SyncIoBridge::new(archive);
        let work = move || {
            let _turn = turn;
            oci.unpack(&id, &to, how, from)
        };
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
                VolumeError::Name(_) | VolumeError::ShortName(_) | VolumeError::Options(..) => {
                    EngineError::Invalid(text)
                }
                VolumeError::Unknown(_) => EngineError::NotFound(text),
                VolumeError::InUse(..) => EngineError::Conflict(text),
                VolumeError::Mount { .. } | VolumeError::Io { .. } => EngineError::Failed(text),
            }
        })
    }
}

fn busy() -> EngineError {
    EngineError::Busy("too many archives are copied: try again".to_owned())
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
