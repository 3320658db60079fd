//! Starts the DNS process so that it lives on when meshd ends.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// How the DNS process is started, for example `meshd dns --socket /run/meshd/dns.sock`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerLaunch {
    pub program: PathBuf,
    pub args: Vec<OsString>,
    /// Gets what it writes to its standard error; nothing is kept without it.
    pub log: Option<PathBuf>,
}

impl ServerLaunch {
    /// Starts the process with no tie to this one's terminal and files. It makes itself a session of its own
    /// ([`crate::run_server`]).
    pub(crate) fn start(&self) -> io::Result<Child> {
        let stderr = match &self.log {
            Some(path) => Stdio::from(OpenOptions::new().create(true).append(true).open(path)?),
            None => Stdio::null(),
        };
        Command::new(&self.program)
            .args(&self.args)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
    }
}
