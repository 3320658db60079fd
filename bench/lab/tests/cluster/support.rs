//! The cluster that the scenarios share, and what they do often.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bench_lab::{Answer, Lab, LabOptions, Role, request, wait_until};

pub type Outcome = Result<()>;

/// Longest time for a service to settle on these machines.
pub const SETTLE: Duration = Duration::from_mins(1);
/// The service that most scenarios use, published here.
pub const PORT: u16 = 8080;

/// The lab and the programs under test.
pub struct Bench {
    pub lab: Lab,
    pub meshctl: PathBuf,
    image: PathBuf,
}

/// A running task as `service ps` shows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunningTask {
    pub name: String,
    pub id: String,
    pub node: String,
}

impl Bench {
    /// Five nodes with the image on each and the `whoami` service of six tasks.
    pub fn up() -> Result<Self> {
        Self::with("test", (3, 2), &[], false)
    }

    /// A cluster of another shape whose nodes leave containers to a Docker Engine each.
    pub fn with_docker(name: &str, (managers, workers): (usize, usize)) -> Result<Self> {
        Self::of(&LabOptions {
            name: name.into(),
            managers,
            workers,
            meshd: program("MESH_MESHD")?,
            meshd_args: Vec::new(),
            is_ipv6_only: false,
            has_docker: true,
        })
    }

    /// A cluster of another shape, or with further arguments for its daemons, or whose nodes have IPv6 alone.
    pub fn with(
        name: &str,
        (managers, workers): (usize, usize),
        meshd_args: &[&str],
        is_ipv6_only: bool,
    ) -> Result<Self> {
        // The registry of the pull test speaks plain HTTP, in whatever subnet the lab gets.
        let always = ["--insecure-registry", "198.18.0.0/15"];
        let options = LabOptions {
            name: name.into(),
            managers,
            workers,
            meshd: program("MESH_MESHD")?,
            meshd_args: always.iter().chain(meshd_args).map(|&arg| arg.to_owned()).collect(),
            is_ipv6_only,
            has_docker: false,
        };
        Self::of(&options)
    }

    fn of(options: &LabOptions) -> Result<Self> {
        take_down(&options.name)?;
        let bench = Self::make(options);
        if bench.is_err()
            && let Err(error) = take_down(&options.name)
        {
            println!("  lab {} did not go down: {error:#}", options.name);
        }
        bench
    }

    fn make(options: &LabOptions) -> Result<Self> {
        let lab = Lab::up(options)?;
        let bench = Self { lab, meshctl: program("MESH_MESHCTL")?, image: program("MESH_WHOAMI_IMAGE")? };
        for node in bench.lab.nodes() {
            bench.import_image(&node.name)?;
        }
        bench.docker(&["network", "create", "-d", "overlay", "app"])?;
        bench.create_whoami("whoami", 6, &["--publish", &format!("{PORT}:80")])?;
        Ok(bench)
    }

    pub fn down(&self) -> Outcome {
        self.lab.down()
    }

    /// A new cluster in the place of one of which nobody knows what is left: nodes that are isolated or dead, addresses
    /// that moved, services half updated.
    pub fn begin_anew(&mut self) -> Outcome {
        self.down()?;
        *self = Self::up()?;
        Ok(())
    }

    pub fn import_image(&self, node: &str) -> Outcome {
        let tar = self.image.to_string_lossy().into_owned();
        for version in ["1", "2"] {
            let env = format!("ENV VERSION={version}");
            let entry = "ENTRYPOINT [\"/whoami\"]";
            let tag = format!("whoami:{version}");
            self.lab.docker(node, &["import", "--change", entry, "--change", &env, &tar, &tag])?;
        }
        Ok(())
    }

    /// The `whoami` program under another name, with these instructions over it.
    pub fn import_with(&self, node: &str, tag: &str, changes: &[&str]) -> Outcome {
        self.import_archive(node, &self.image, tag, changes)
    }

    /// An image of one layer, from an archive of its root file system and instructions over it.
    pub fn import_archive(&self, node: &str, archive: &Path, tag: &str, changes: &[&str]) -> Outcome {
        let archive = archive.to_string_lossy();
        let changes = changes.iter().flat_map(|change| ["--change", *change]);
        let args: Vec<&str> = ["import"].into_iter().chain(changes).chain([&*archive, tag]).collect();
        self.lab.docker(node, &args).map(drop)
    }

    /// The archive of a test stack's image; it lies beside the demo's.
    pub fn archive(&self, name: &str) -> PathBuf {
        self.image.with_file_name(name)
    }

    /// The `whoami` program outside its image, to be run in sandboxes.
    pub fn whoami_program(&self) -> String {
        self.image.with_file_name("whoami-rootfs").join("whoami").to_string_lossy().into_owned()
    }

    /// A `whoami` service on the `app` network, converged.
    pub fn create_whoami(&self, name: &str, replicas: usize, further: &[&str]) -> Outcome {
        self.create_whoami_on(&["app"], (name, replicas), further)
    }

    /// The same on other networks.
    pub fn create_whoami_on(
        &self,
        networks: &[&str],
        (name, replicas): (&str, usize),
        further: &[&str],
    ) -> Outcome {
        let replicas = replicas.to_string();
        let mut args = vec!["service", "create", "--quiet", "--no-resolve-image", "--name", name];
        args.extend(networks.iter().flat_map(|network| ["--network", *network]));
        args.extend(["--replicas", &replicas]);
        args.extend(["--env", "NODE={{.Node.Hostname}}", "--env", "TASK={{.Task.Name}}"]);
        args.extend(further);
        args.push("whoami:1");
        self.docker(&args).map(drop)
    }

    /// `docker` against a manager whose daemon runs; it must succeed.
    pub fn docker(&self, args: &[&str]) -> Result<String> {
        self.lab.docker(&self.live_manager()?, args)
    }

    pub fn live_manager(&self) -> Result<String> {
        let rows = self.lab.status();
        let mut live = self
            .lab
            .nodes()
            .iter()
            .zip(&rows)
            .filter(|(n, row)| n.role == Role::Manager && row.pid.is_some());
        Ok(live.next().context("no manager's daemon runs")?.0.name.clone())
    }

    pub fn leader(&self) -> Result<String> {
        self.lab.leader(&self.live_manager()?)?.context("no leader")
    }

    /// Tasks that should run and do.
    pub fn running(&self, service: &str) -> Result<Vec<RunningTask>> {
        let format = "{{.Name}} {{.ID}} {{.Node}} {{.CurrentState}}";
        let rows = self.docker(&[
            "service",
            "ps",
            "--no-trunc",
            service,
            "--filter",
            "desired-state=running",
            "--format",
            format,
        ])?;
        let rows = rows.lines().filter_map(|line| {
            let mut words = line.split(' ').map(str::to_owned);
            let (name, id, node, state) = (words.next()?, words.next()?, words.next()?, words.next()?);
            (state == "Running").then_some(RunningTask { name, id, node })
        });
        let mut rows: Vec<RunningTask> = rows.collect();
        rows.sort();
        Ok(rows)
    }

    /// Waits until `n` tasks of the service run where `fits` says, and returns how long that took.
    pub fn wait_running(
        &self,
        service: &str,
        n: usize,
        fits: impl Fn(&RunningTask) -> bool,
    ) -> Result<Duration> {
        let mut seen = Vec::new();
        let result = wait_until(&format!("{n} running tasks of {service}"), SETTLE, || {
            seen = self.running(service)?;
            Ok((seen.len() == n && seen.iter().all(&fits)).then_some(()))
        });
        let all = || self.docker(&["service", "ps", "--no-trunc", service]).unwrap_or_default();
        Ok(result.with_context(|| format!("{service} has {seen:?}; all of its tasks:\n{}", all()))?.1)
    }

    pub fn targets(&self) -> Vec<SocketAddr> {
        self.lab.nodes().iter().map(|n| SocketAddr::new(n.address.into(), PORT)).collect()
    }

    /// The same by IPv6, where the kernel has it.
    pub fn targets6(&self) -> Vec<SocketAddr> {
        let nodes = self.lab.nodes().iter().filter(|_| bench_lab::has_ipv6());
        nodes.map(|n| SocketAddr::new(n.address6().into(), PORT)).collect()
    }

    /// `n` requests from the client, to the targets in turn; all must be answered.
    pub fn ask(&self, from: &str, targets: &[SocketAddr], n: usize) -> Result<Vec<Answer>> {
        self.lab.inside(from, || {
            let turns = targets.iter().cycle().take(n);
            turns.map(|to| request(*to).with_context(|| format!("request from {from} to {to}"))).collect()
        })?
    }

    /// Runs the `whoami` program in the sandbox of a running task.
    pub fn in_task(&self, task: &RunningTask, words: &[&str]) -> Result<String> {
        let netns = self.lab.socket(&task.node)?.with_file_name("netns").join(&task.id);
        ensure!(netns.exists(), "no sandbox {}", netns.display());
        let netns = format!("--net={}", netns.display());
        let program = self.whoami_program();
        let args: Vec<&str> =
            [netns.as_str(), "--", &program].into_iter().chain(words.iter().copied()).collect();
        bench_lab::run("nsenter", &args)
    }

    /// `meshctl` against a node's daemon.
    pub fn meshctl(&self, node: &str, args: &[&str]) -> Result<String> {
        let socket = format!("unix://{}", self.lab.socket(node)?.display());
        let all: Vec<&str> = ["-H", &socket].iter().chain(args).copied().collect();
        bench_lab::run(&self.meshctl.to_string_lossy(), &all)
    }

    /// What helps to see why a scenario failed.
    pub fn print_diagnosis(&self) {
        for args in [&["node", "ls"][..], &["service", "ls"], &["service", "ps", "whoami", "--no-trunc"]] {
            if let Ok(output) = self.docker(args) {
                println!("    $ docker {}\n{}", args.join(" "), indented(&output));
            }
        }
        for node in self.lab.nodes() {
            if let Ok(log) = self.lab.log_file(&node.name)
                && let Ok(text) = std::fs::read_to_string(log)
            {
                let lines: Vec<&str> = text.lines().collect();
                println!(
                    "    log of {}:\n{}",
                    node.name,
                    indented(&lines[lines.len().saturating_sub(12)..].join("\n"))
                );
            }
        }
    }
}

/// How often each value of `key` was answered.
pub fn counts<'a>(answers: &'a [Answer], key: &str) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    for answer in answers {
        *counts.entry(answer.get(key)).or_default() += 1;
    }
    counts
}

/// Takes the lab of this name down, if there is one.
fn take_down(name: &str) -> Outcome {
    if Lab::exists(name)? { Lab::open(name)?.down() } else { Ok(()) }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("      {line:.220}")).collect::<Vec<_>>().join("\n")
}

fn program(variable: &str) -> Result<PathBuf> {
    let path = std::env::var_os(variable)
        .with_context(|| format!("{variable} is not set; run `cargo xtask test`"))?;
    ensure!(Path::new(&path).exists(), "{variable} names no file");
    Ok(path.into())
}
