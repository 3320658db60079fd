//! Runs a health check's command in a container.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use control_model::executor::ExecutorError;
use control_model::object::HealthStatus;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};

use super::health::{HealthCheck, Probe};
use super::listening::opening;
use super::paths::TaskPaths;
use super::record::Stage;
use super::{Container, Oci, now};

/// Docker's bound of a probe's output.
const MAX_OUTPUT_LEN: usize = 4096;
/// A killed process ends at once; a runtime that takes longer is left alone.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// Exit code of a probe that took too long, or could not be run. Docker's.
const NO_EXIT_CODE: i32 = -1;

impl Oci {
    /// Probes the container until its check says something else than `known`. Without one, waits until it listens.
    pub(super) async fn watch_health(
        &self,
        container: &Container,
        known: HealthStatus,
    ) -> Result<Option<HealthStatus>, ExecutorError> {
        let record = container.record();
        let (Some(health), Stage::Started { at: started, .. }) = (&record.health, record.stage) else {
            if let Some(opening) = opening(&record, now()) {
                opening.over().await;
            }
            return Ok(None);
        };
        let check = &health.check;
        loop {
            let health = container.health();
            if health.status != known {
                return Ok(Some(health.status));
            }
            tokio::time::sleep(health.wait(check, started, now())).await;
            let probe = self.probe(&container.paths, check).await;
            if probe.exit_code != 0 {
                tracing::debug!(task = %record.task, code = probe.exit_code, output = probe.output, "probe failed");
            }
            container.take_probe(check, started, probe);
        }
    }

    async fn probe(&self, paths: &TaskPaths, check: &HealthCheck) -> Probe {
        let start = now();
        let (exit_code, output) = match self.run_probe(paths, check).await {
            Ok(result) => result,
            Err(error) => (NO_EXIT_CODE, error.to_string()),
        };
        Probe { start, end: now(), exit_code, output }
    }

    async fn run_probe(&self, paths: &TaskPaths, check: &HealthCheck) -> io::Result<(i32, String)> {
        let (reader, writer) = io::pipe()?;
        let mut reader = Receiver::from_owned_fd(reader.into())?;
        // The pid file of the probe before is no word on this one.
        let _ = std::fs::remove_file(paths.probe_pid());
        let mut command = Command::new(&self.0.runtime);
        command.arg("--root").arg(self.0.layout.runtime_root());
        command.arg("exec").arg("--process").arg(paths.probe_process());
        command.arg("--pid-file").arg(paths.probe_pid()).arg(&paths.container_id);
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).kill_on_drop(true);
        let mut child = command.spawn()?;
        // Its ends of the pipe are the child's alone.
        drop(command);
        let mut output = Vec::new();
        let ended = tokio::time::timeout(check.timeout, end_of(&mut child, &mut reader, &mut output)).await;
        let Ok(status) = ended else {
            kill_probe(paths, &mut child).await;
            return Ok((NO_EXIT_CODE, format!("Health check exceeded timeout ({:?})", check.timeout)));
        };
        let code = status?.code().unwrap_or(NO_EXIT_CODE);
        read_now(&mut reader, &mut output);
        Ok((code, String::from_utf8_lossy(&output).into_owned()))
    }
}

/// The end of a probe. Its output is read meanwhile, so that a full pipe doesn't hold it up; who keeps the pipe open behind it
/// doesn't either.
async fn end_of(child: &mut Child, reader: &mut Receiver, output: &mut Vec<u8>) -> io::Result<ExitStatus> {
    let mut is_open = true;
    loop {
        tokio::select! {
            status = child.wait() => return status,
            readable = reader.readable(), if is_open => {
                readable?;
                is_open = read_now(reader, output);
            }
        }
    }
}

/// Takes what the pipe has. False at its end.
fn read_now(reader: &mut Receiver, output: &mut Vec<u8>) -> bool {
    let mut chunk = [0; MAX_OUTPUT_LEN];
    loop {
        match reader.try_read(&mut chunk) {
            Ok(0) => return false,
            Ok(len) => output.extend_from_slice(&chunk[..len.min(MAX_OUTPUT_LEN - output.len())]),
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

/// Kills the process in the container; the runtime ends with it. The id is still that process's: its parent, the runtime, has
/// not ended.
async fn kill_probe(paths: &TaskPaths, child: &mut Child) {
    let pid = std::fs::read_to_string(paths.probe_pid()).ok().and_then(|text| text.trim().parse().ok());
    if let Some(pid) = pid {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    if pid.is_none() || tokio::time::timeout(KILL_TIMEOUT, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, Mutex};

    use control_model::log_driver::LogDriver;
    use control_model::spec::HealthConfig;
    use control_model::{TaskId, Timestamp};

    use super::super::cgroup::CgroupLayout;
    use super::super::paths::Layout;
    use super::super::record::{ContainerRecord, HealthRecord};
    use super::super::{Inner, now};
    use super::*;
    use crate::events::Events;
    use crate::image::ImageStore;
    use crate::volume::Volumes;

    /// An executor whose runtime is a program that ends at once.
    fn executor(dir: &Path, runtime: &str) -> Oci {
        let layout = Layout { state_dir: dir.join("state"), run_dir: dir.join("run") };
        Oci(Arc::new(Inner {
            events: Events::default(),
            volumes: Volumes::open(layout.volumes(), std::iter::empty(), Events::default()).expect("opened"),
            images: ImageStore::open(&layout.images(), BTreeSet::new(), Events::default())
                .expect("a directory"),
            layout,
            runtime: PathBuf::from(runtime),
            cgroup_parent: String::new(),
            node_hostname: String::new(),
            log: LogDriver::default(),
            cgroups: CgroupLayout::Unified,
            containers: Mutex::default(),
        }))
    }

    fn container(executor: &Oci) -> Container {
        let config = HealthConfig {
            test: ["CMD", "/check"].map(String::from).into(),
            interval: Duration::from_millis(1),
            retries: 1,
            ..HealthConfig::default()
        };
        let check = HealthCheck::of(&config).expect("a check");
        let task = TaskId::from_bits(1);
        let record = ContainerRecord {
            task,
            container_id: task.container_id(),
            name: "s.1.x".into(),
            image: String::new(),
            image_id: String::new(),
            command: Vec::new(),
            env: Vec::new(),
            user: String::new(),
            working_dir: String::new(),
            hostname: String::new(),
            tty: false,
            log: LogDriver::default(),
            ports: Vec::new(),
            mounts: Vec::new(),
            exposed_ports: Vec::new(),
            labels: BTreeMap::new(),
            created_at: Timestamp(0),
            cgroup: String::new(),
            stop_signal: 15,
            stop_grace: Duration::ZERO,
            stage: Stage::Started { pid: 1, at: now() },
            ended: None,
            health: Some(HealthRecord { check, status: HealthStatus::Starting }),
            standalone: None,
        };
        Container::new(executor.0.layout.task(task), record, Events::default())
    }

    #[tokio::test]
    async fn a_change_of_health_is_told_also_when_it_can_not_be_recorded() {
        let dir = tempfile::tempdir().expect("a directory");
        let good = executor(dir.path(), "/bin/true");
        let container = container(&good);
        let recorded = || container.record().health.expect("it has a check").status;
        // The record's directory isn't there: nothing can be written.
        let told = good.watch_health(&container, HealthStatus::Starting).await;
        assert_eq!((told.expect("told"), recorded()), (Some(HealthStatus::Healthy), HealthStatus::Starting));
        let bad = executor(dir.path(), "/bin/false");
        let told = bad.watch_health(&container, HealthStatus::Healthy).await;
        assert_eq!(
            (told.expect("told"), recorded()),
            (Some(HealthStatus::Unhealthy), HealthStatus::Starting)
        );
        // As soon as there is room the record is right again.
        std::fs::create_dir_all(&container.paths.dir).expect("made");
        good.watch_health(&container, HealthStatus::Unhealthy).await.expect("told");
        assert_eq!(recorded(), HealthStatus::Healthy);
        let on_disk = ContainerRecord::read(&container.paths.record()).expect("written");
        assert_eq!(on_disk, container.record());
    }
}
