//! A stack of files, as its user deploys it; its pages, as a browser outside of the cluster asks for them.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use bench_lab::{Captured, NodeRecord, wait_until};
use tempfile::TempDir;

use crate::support::{Bench, Outcome, SETTLE};

/// A stack and the directory that its files are in.
pub struct Stack<'a> {
    pub bench: &'a Bench,
    name: &'static str,
    dir: TempDir,
}

impl<'a> Stack<'a> {
    /// Files by their names.
    pub fn new(bench: &'a Bench, name: &'static str, files: &[(&str, &str)]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        for (file, text) in files {
            std::fs::write(dir.path().join(file), text)?;
        }
        Ok(Self { bench, name, dir })
    }

    /// `docker stack deploy` in the files' directory, with what the files take from the environment.
    pub fn deploy(&self, options: &[&str], variables: &[(&str, &str)]) -> Result<Captured> {
        let socket = format!("unix://{}", self.bench.lab.socket(&self.bench.live_manager()?)?.display());
        let mut command = Command::new("docker");
        command.args(["-H", &socket, "stack", "deploy"]).args(options).arg(self.name);
        command.envs(variables.iter().copied()).current_dir(self.dir.path()).stdin(Stdio::null());
        let said: Captured = command.output()?.into();
        ensure!(said.success(), "docker stack deploy {}: {}", options.join(" "), said.text());
        Ok(said)
    }

    pub fn service(&self, name: &str) -> String {
        format!("{}_{name}", self.name)
    }

    /// Waits until each service runs as many tasks.
    pub fn wait_running(&self, services: &[(&str, usize)]) -> Outcome {
        let start = Instant::now();
        for (service, n_tasks) in services {
            self.bench.wait_running(&self.service(service), *n_tasks, |_| true)?;
        }
        println!("  all tasks of {} ran after {:.1} s", self.name, start.elapsed().as_secs_f64());
        Ok(())
    }

    /// How many tasks a service has had.
    pub fn n_tasks(&self, service: &str) -> Result<usize> {
        Ok(self.bench.docker(&["service", "ps", "-q", &self.service(service)])?.lines().count())
    }

    /// `docker stack rm`, and what of it is left after a while: nothing but its volumes, which are their user's to remove.
    pub fn remove(self, volumes: &[&str]) -> Outcome {
        let start = Instant::now();
        self.bench.docker(&["stack", "rm", self.name])?;
        let label = format!("label=com.docker.stack.namespace={}", self.name);
        for kind in ["service", "network", "config", "secret"] {
            wait_until(&format!("no {kind} of the stack"), SETTLE, || {
                let left = self.bench.docker(&[kind, "ls", "-q", "--filter", &label])?;
                Ok(left.is_empty().then_some(()))
            })?;
        }
        let mut left = Vec::new();
        for node in self.bench.lab.nodes() {
            let docker = |args: &[&str]| self.bench.lab.docker(&node.name, args);
            wait_until(&format!("no container of the stack on {}", node.name), SETTLE, || {
                Ok(docker(&["ps", "-aq", "--filter", &label])?.is_empty().then_some(()))
            })?;
            let volumes = docker(&["volume", "ls", "-q"])?;
            for volume in volumes.lines() {
                docker(&["volume", "rm", volume])?;
                left.push(volume.to_owned());
            }
        }
        ensure!(left == volumes, "the volumes {left:?} were left");
        println!("  {} was gone after {:.1} s", self.name, start.elapsed().as_secs_f64());
        Ok(())
    }
}

/// What a node answers to a client outside of the cluster; an error if it answers that something is wrong.
pub fn page(bench: &Bench, node: &NodeRecord, request: &Request) -> Result<String> {
    let (status, text) = ask(bench, node, request)?;
    ensure!(status == 200, "{}: {status}: {}", node.name, text.trim());
    Ok(text)
}

/// The same from every node.
pub fn pages(bench: &Bench, port: u16) -> Result<Vec<String>> {
    bench.lab.nodes().iter().map(|node| page(bench, node, &Request::to(port))).collect()
}

/// A port, a path, and further options for curl.
pub struct Request<'a> {
    pub port: u16,
    pub path: &'a str,
    pub options: &'a [&'a str],
}

impl Request<'_> {
    pub fn to(port: u16) -> Self {
        Self { port, path: "/", options: &[] }
    }
}

/// Status and body.
pub fn ask(bench: &Bench, node: &NodeRecord, request: &Request) -> Result<(u16, String)> {
    let url = format!("http://{}{}", SocketAddr::new(node.address.into(), request.port), request.path);
    let options = ["-sS", "--max-time", "5", "-w", "\n%{http_code}", &url];
    let said = bench.lab.exec("client", "curl", &[&options[..], request.options].concat())?;
    if !said.success() {
        bail!("{url}: {}", said.stderr.trim());
    }
    let (text, status) = said.stdout.rsplit_once('\n').context("curl prints a status")?;
    Ok((status.parse()?, text.to_owned()))
}

/// No node has anything at this port.
pub fn nothing_at(bench: &Bench, port: u16) -> Outcome {
    for node in bench.lab.nodes() {
        wait_until(&format!("nothing at {} port {port}", node.name), SETTLE, || {
            Ok(ask(bench, node, &Request::to(port)).is_err().then_some(()))
        })?;
    }
    Ok(())
}
