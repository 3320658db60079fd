//! What a user does to a container by its id: signals, stops, looks at its processes and what it uses.

use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use control_model::executor::Executor as _;
use tokio::process::Command;

use super::process::signal_number;
use super::usage::{Usage, processes, usage};
use super::{Container, Oci};
use crate::events::ContainerChange;

/// Why nothing came of it. `Display` is Docker's sentence.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("No such container: {0}")]
    Unknown(String),
    #[error("container {0} is not running")]
    NotRunning(String),
    #[error("invalid signal: {0}")]
    Signal(String),
    #[error("ps: {0}")]
    Ps(String),
    #[error("{0}")]
    Failed(String),
}

/// The container's rows of `ps`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessTable {
    pub titles: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

impl Oci {
    /// Sends a signal, by its name or number, to the container's first process.
    pub async fn kill(&self, id: &str, signal: &str) -> Result<(), ControlError> {
        let number = number_of(signal)?;
        let (container, _) = self.running(id)?;
        match self.signal(&container, number).await {
            Ok(()) => Ok(()),
            // It has ended meanwhile: the runtime knows first.
            Err(_) if self.pid_by_runtime(&container).await.is_none() => {
                Err(ControlError::NotRunning(id.to_owned()))
            }
            Err(error) => Err(ControlError::Failed(error.to_string())),
        }
    }

    /// A container that gets this signal is meant to end.
    pub(crate) fn is_to_end_by(&self, id: &str, signal: &str) -> Result<bool, ControlError> {
        let number = number_of(signal)?;
        let container = self.container_by_id(id).ok_or_else(|| ControlError::Unknown(id.to_owned()))?;
        Ok(number == libc::SIGKILL || number == container.record().stop_signal)
    }

    /// Sends `signal`, or its stop signal, and SIGKILL if it has not ended after `grace`, or its own time. False if it did not run.
    pub async fn stop(
        &self,
        id: &str,
        signal: Option<&str>,
        grace: Option<Duration>,
    ) -> Result<bool, ControlError> {
        let signal = signal.map(number_of).transpose()?;
        let (container, _) = match self.running(id) {
            Err(ControlError::NotRunning(_)) => return Ok(false),
            other => other?,
        };
        let record = container.record();
        self.signal_to_end(&container, signal.unwrap_or(record.stop_signal)).await;
        let grace = grace.unwrap_or(record.stop_grace);
        let ended = match tokio::time::timeout(grace, self.ended(&container)).await {
            Ok(ended) => ended.map(drop).map_err(|error| error.to_string()),
            Err(_) => self.terminate(record.task).await.map_err(|error| error.to_string()),
        };
        ended.map_err(ControlError::Failed)?;
        self.0.events.container(ContainerChange::Stopped, &container.record());
        Ok(true)
    }

    /// What `ps` with these arguments says of its processes.
    pub async fn top(&self, id: &str, arguments: &[String]) -> Result<ProcessTable, ControlError> {
        let (container, _) = self.running(id)?;
        let failed = |error: io::Error| ControlError::Failed(error.to_string());
        let pids = processes(self.0.cgroups, &container.record().cgroup).map_err(failed)?;
        let mut ps = Command::new("ps");
        let output =
            ps.args(arguments).stdin(Stdio::null()).kill_on_drop(true).output().await.map_err(failed)?;
        if !output.status.success() {
            return Err(ControlError::Ps(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        table(&String::from_utf8_lossy(&output.stdout), &pids)
    }

    /// What it uses now.
    pub fn usage(&self, id: &str) -> Result<Usage, ControlError> {
        let (container, pid) = self.running(id)?;
        Ok(usage(self.0.cgroups, &container.record().cgroup, pid))
    }

    fn running(&self, id: &str) -> Result<(Arc<Container>, i32), ControlError> {
        let unknown = || ControlError::Unknown(id.to_owned());
        let info = self.list_containers().into_iter().find(|one| one.record.container_id == id);
        let info = info.ok_or_else(unknown)?;
        let container = self.container(info.record.task).ok_or_else(unknown)?;
        match info.pid.filter(|_| info.state == "running") {
            Some(pid) => Ok((container, pid)),
            None => Err(ControlError::NotRunning(id.to_owned())),
        }
    }
}

fn number_of(signal: &str) -> Result<i32, ControlError> {
    let number = signal_number(signal).filter(|number| *number > 0);
    number.ok_or_else(|| ControlError::Signal(signal.to_owned()))
}

/// The rows of these processes (moby `daemon/top_unix.go`): the last column has all that is left of its line.
fn table(output: &str, pids: &[i32]) -> Result<ProcessTable, ControlError> {
    let mut lines = output.lines();
    let titles: Vec<String> =
        lines.next().unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    let at = titles.iter().position(|title| title == "PID");
    let at = at.ok_or_else(|| ControlError::Ps("Couldn't find PID field in ps output".into()))?;
    let fields = |line: &str| {
        let mut fields: Vec<String> = Vec::with_capacity(titles.len());
        let mut rest = line.trim();
        while fields.len() + 1 < titles.len() && !rest.is_empty() {
            let (word, tail) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            fields.push(word.to_owned());
            rest = tail.trim_start();
        }
        fields.push(rest.to_owned());
        fields
    };
    let is_its = |row: &Vec<String>| {
        row.get(at).and_then(|pid| pid.parse::<i32>().ok()).is_some_and(|pid| pids.contains(&pid))
    };
    let rows = lines.map(fields).filter(is_its).collect();
    Ok(ProcessTable { titles, rows })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_container_are_told_from_others() {
        let output = "UID          PID    PPID  C CMD\nroot           1       0  0 /sbin/init\n\
                      root          42       1  0 /web --name  a b\nroot          43      42  0 sh\n";
        let found = table(output, &[42, 43, 99]).expect("a table");
        assert_eq!(found.titles, ["UID", "PID", "PPID", "C", "CMD"]);
        assert_eq!(
            found.rows,
            [["root", "42", "1", "0", "/web --name  a b"], ["root", "43", "42", "0", "sh"]]
        );
        assert_eq!(
            table("CMD\nsh\n", &[1]).expect_err("no ids").to_string(),
            "ps: Couldn't find PID field in ps output"
        );
    }
}
