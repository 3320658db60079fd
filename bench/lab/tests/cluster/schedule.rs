//! One fault after another on three managers and three workers under load: what was acknowledged stays, Raft's data is
//! sealed, and what is healthy answers.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use bench_lab::{Lab, Role, Traffic, TrafficReport, Way, wait_until};

use crate::failures::wait_ready;
use crate::support::{Bench, Outcome, PORT, SETTLE};

const SERVICE: &str = "whoami";
const N_TASKS: usize = 6;
const RATE_PER_S: u32 = 100;
/// Between two writes of the clients'.
const WRITE_PAUSE: Duration = Duration::from_millis(300);
const WRITE_LIMIT: &str = "20";
const HOLD: Duration = Duration::from_secs(4);
const LONG_PLAY: Duration = Duration::from_mins(30);
/// Longer than a request waits for an answer: one that goes to a lost backend fails.
const HOLD_OFF_THE_NET: Duration = Duration::from_secs(8);
/// Requests that a lost backend may have under way. Whoever begins then is sent to another by a repeated SYN: within 3 s, since
/// backends leave within 1.5.
const MAX_UNDER_WAY: u64 = 3;
/// Of a manager's own, in the place of its state directory.
const SMALL_DISK: &str = "size=192m";
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
/// In the name of each service that is written; nowhere in Raft's data.
const MARK: &str = "acknowledged";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    Stall,
    Isolate,
    Cut(Way),
    SlowDisk,
    FullDisk,
    ClockForward,
    ClockBack,
}

/// Each once in a round, on managers and workers in turn.
const ROUND: [(Fault, Victim); 11] = [
    (Fault::Kill, Victim::Leader),
    (Fault::SlowDisk, Victim::Leader),
    (Fault::Isolate, Victim::Worker),
    (Fault::ClockForward, Victim::Follower),
    (Fault::Cut(Way::Out), Victim::Leader),
    (Fault::Cut(Way::In), Victim::Worker),
    (Fault::FullDisk, Victim::Follower),
    (Fault::Stall, Victim::Worker),
    (Fault::Isolate, Victim::Leader),
    (Fault::ClockBack, Victim::Leader),
    (Fault::Cut(Way::In), Victim::Leader),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Leader,
    Follower,
    Worker,
}

impl Fault {
    /// Does the node's data path go, with its tasks?
    fn takes_the_data_path(self) -> bool {
        matches!(self, Self::Isolate | Self::Cut(_))
    }
}

/// Rounds of faults: one, or for half an hour with `MESH_TEST_LONG`.
pub fn faults_follow_each_other(_: &mut Bench) -> Outcome {
    let bench = Bench::with("faults", (3, 3), &[], false)?;
    let outcome = play(&bench);
    if outcome.is_err() {
        bench.print_diagnosis();
    }
    bench.down()?;
    outcome
}

fn play(bench: &Bench) -> Outcome {
    let ledger = Ledger::default();
    let (stop, mut tally) = (AtomicBool::new(false), Tally::default());
    let outcome = std::thread::scope(|scope| {
        let writer = scope.spawn(|| ledger.write(bench, &stop));
        let outcome = rounds(bench, &ledger, &mut tally);
        stop.store(true, Ordering::Relaxed);
        writer.join().map_err(|_| anyhow!("the writer panicked"))?;
        outcome
    });
    println!(
        "  {} faults, {} requests to the other nodes, {} failed; {} writes acknowledged, {} not",
        tally.faults,
        tally.requests,
        tally.failed,
        ledger.acknowledged().len(),
        ledger.n_refused.load(Ordering::Relaxed)
    );
    outcome?;
    ledger.check(bench)?;
    nothing_in_the_clear(bench)
}

/// Counts.
#[derive(Default)]
struct Tally {
    faults: u64,
    requests: u64,
    failed: u64,
}

fn rounds(bench: &Bench, ledger: &Ledger, tally: &mut Tally) -> Outcome {
    let end = Instant::now() + LONG_PLAY;
    let is_long = std::env::var_os("MESH_TEST_LONG").is_some();
    loop {
        for (fault, victim) in ROUND {
            let report = inflict(bench, fault, victim, tally.faults)
                .with_context(|| format!("fault {}, {fault:?} of a {victim:?}", tally.faults))?;
            tally.faults += 1;
            tally.requests += report.n_sent;
            tally.failed += report.n_failed;
        }
        ledger.check(bench)?;
        if !is_long || Instant::now() >= end {
            return Ok(());
        }
    }
}

/// One fault, the `number`th, from its beginning to the end of its traces, under load at the other nodes.
fn inflict(bench: &Bench, fault: Fault, victim: Victim, number: u64) -> Result<TrafficReport> {
    let node = choose(bench, victim, number)?;
    let others: Vec<SocketAddr> = bench
        .lab
        .nodes()
        .iter()
        .filter(|other| other.name != node)
        .map(|other| SocketAddr::new(other.address.into(), PORT))
        .collect();
    let traffic = Traffic::start(&bench.lab, &others, RATE_PER_S)?;
    wait_until("traffic to flow", SETTLE, || Ok((traffic.so_far().n_sent > 50).then_some(())))?;
    let harm = Harm { lab: &bench.lab, node: &node };
    let start = Instant::now();
    harm.inflict(fault)?;
    wait_ready(bench, &node)?;
    bench.wait_running(SERVICE, N_TASKS, |_| true)?;
    managers_agree(bench)?;
    let report = traffic.stop()?;
    println!(
        "  {fault:?} of {node}: {:.1} s; {} requests, {} failed, slowest answer {:.1} s",
        start.elapsed().as_secs_f64(),
        report.n_sent,
        report.n_failed,
        report.slowest.as_secs_f64()
    );
    let limit = if fault.takes_the_data_path() { MAX_UNDER_WAY } else { 0 };
    ensure!(report.n_failed <= limit, "requests failed: {:?}", report.failures);
    bench.ask("client", &bench.targets(), 60).context("after it")?;
    Ok(report)
}

/// All of a kind have their turns.
fn choose(bench: &Bench, victim: Victim, number: u64) -> Result<String> {
    let leader = bench.leader()?;
    let nodes = bench.lab.nodes().iter().filter(|node| match victim {
        Victim::Leader => node.name == leader,
        Victim::Follower => node.role == Role::Manager && node.name != leader,
        Victim::Worker => node.role == Role::Worker,
    });
    let nodes: Vec<_> = nodes.collect();
    let turn = usize::try_from(number)?.checked_rem(nodes.len()).context("no such node")?;
    Ok(nodes[turn].name.clone())
}

/// Every manager is a reachable one, to each of them.
fn managers_agree(bench: &Bench) -> Outcome {
    let managers = || bench.lab.nodes().iter().filter(|node| node.role == Role::Manager);
    wait_until("all managers to be reachable for each other", SETTLE, || {
        let format = "{{.Hostname}} {{.ManagerStatus}}";
        for manager in managers() {
            let rows = bench.lab.try_docker(&manager.name, &["node", "ls", "--format", format])?;
            let text = rows.text();
            let seated = text.lines().filter(|row| row.ends_with("Leader") || row.ends_with("Reachable"));
            if !rows.success() || seated.count() != managers().count() {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })?;
    Ok(())
}

/// What is done to a node, and undone.
struct Harm<'a> {
    lab: &'a Lab,
    node: &'a str,
}

impl Harm<'_> {
    fn inflict(&self, fault: Fault) -> Outcome {
        match fault {
            Fault::Kill => {
                self.lab.kill(self.node)?;
                hold();
                self.lab.start(self.node)
            }
            Fault::Stall => {
                let pid = self.lab.pid(self.node)?.context("it runs")?.to_string();
                bench_lab::run("kill", &["-STOP", &pid])?;
                std::thread::sleep(Duration::from_secs(2));
                bench_lab::run("kill", &["-CONT", &pid]).map(drop)
            }
            Fault::Isolate => {
                self.lab.isolate(self.node)?;
                std::thread::sleep(HOLD_OFF_THE_NET);
                self.lab.heal(self.node)
            }
            Fault::Cut(way) => {
                self.lab.cut_way(self.node, way)?;
                std::thread::sleep(HOLD_OFF_THE_NET);
                self.lab.heal_way(self.node)
            }
            Fault::SlowDisk => self.slow_disk(),
            Fault::FullDisk => self.full_disk(),
            Fault::ClockForward => self.clock("+3h"),
            Fault::ClockBack => self.clock("-3h"),
        }
    }

    /// Every flush takes 200 ms longer.
    fn slow_disk(&self) -> Outcome {
        let pid = self.lab.pid(self.node)?.context("it runs")?.to_string();
        let delay = "inject=fsync,fdatasync:delay_enter=200000";
        let mut strace = Command::new("strace")
            .args(["-f", "-qq", "-e", "trace=fsync,fdatasync", "-e", delay, "-o", "/dev/null", "-p", &pid])
            .stdin(Stdio::null())
            .spawn()
            .context("strace")?;
        hold();
        end(&mut strace)
    }

    /// The daemon's disk has no room left; then it has, and the daemon is started again.
    fn full_disk(&self) -> Outcome {
        let disk = SmallDisk::put_in(self.lab, self.node)?;
        wait_until("room to be used up", SETTLE, || Ok(disk.fill()?.then_some(())))?;
        hold();
        disk.take_out()
    }

    /// The clock jumps and, a while later, back. What measures spans goes on.
    fn clock(&self, jump: &str) -> Outcome {
        let file = self.lab.swarm_dir(self.node)?.with_file_name("faketime");
        let set = |text: &str| fs::write(&file, text);
        set("+0")?;
        self.lab.stop(self.node)?;
        let path = file.to_string_lossy();
        self.lab.start_with(
            self.node,
            &[
                ("LD_PRELOAD", FAKETIME),
                ("FAKETIME_TIMESTAMP_FILE", &path),
                ("FAKETIME_NO_CACHE", "1"),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ],
        )?;
        set(jump)?;
        hold();
        set("+0")?;
        hold();
        self.lab.stop(self.node)?;
        self.lab.start(self.node)?;
        Ok(fs::remove_file(&file)?)
    }
}

fn hold() {
    std::thread::sleep(HOLD);
}

/// Ends a child as a user would, so that strace lets go of what it traces.
fn end(child: &mut Child) -> Outcome {
    bench_lab::run("kill", &["-INT", &child.id().to_string()])?;
    child.wait()?;
    Ok(())
}

/// A memory disk in the place of a node's swarm directory.
struct SmallDisk<'a> {
    lab: &'a Lab,
    node: &'a str,
    dir: PathBuf,
    aside: PathBuf,
}

impl<'a> SmallDisk<'a> {
    fn put_in(lab: &'a Lab, node: &'a str) -> Result<Self> {
        let dir = lab.swarm_dir(node)?;
        let aside = dir.with_file_name("swarm.aside");
        let disk = Self { lab, node, dir, aside };
        lab.stop(node)?;
        copy(&disk.dir, &disk.aside)?;
        bench_lab::run("mount", &["-t", "tmpfs", "-o", SMALL_DISK, "tmpfs", &disk.dir.to_string_lossy()])?;
        copy(&disk.aside, &disk.dir)?;
        lab.start(node)?;
        Ok(disk)
    }

    /// True when not a page is left.
    fn fill(&self) -> Result<bool> {
        let file = self.dir.join("fill");
        let mut options = fs::File::options();
        let mut file = options.create(true).append(true).open(file)?;
        let mut page = 1 << 20;
        while page >= 4096 {
            if std::io::Write::write_all(&mut file, &vec![0; page]).is_err() {
                page /= 2;
            }
        }
        let probe = self.dir.join("probe");
        let is_full = fs::write(&probe, [1; 4096]).is_err();
        fs::remove_file(&probe)?;
        Ok(is_full)
    }

    fn take_out(self) -> Outcome {
        fs::remove_file(self.dir.join("fill"))?;
        self.lab.stop(self.node)?;
        fs::remove_dir_all(&self.aside)?;
        copy(&self.dir, &self.aside)?;
        bench_lab::run("umount", &[&self.dir.to_string_lossy()])?;
        fs::remove_dir_all(&self.dir)?;
        fs::rename(&self.aside, &self.dir)?;
        self.lab.start(self.node)
    }
}

fn copy(from: &Path, to: &Path) -> Outcome {
    fs::create_dir_all(to)?;
    let from = format!("{}/.", from.display());
    bench_lab::run("cp", &["-a", &from, &to.to_string_lossy()]).map(drop)
}

/// What clients were told is written.
#[derive(Default)]
struct Ledger {
    acknowledged: Mutex<BTreeSet<String>>,
    n_refused: AtomicU64,
}

impl Ledger {
    fn acknowledged(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes one thing after another at whatever manager takes it, until `stop`.
    fn write(&self, bench: &Bench, stop: &AtomicBool) {
        let managers: Vec<&str> = bench
            .lab
            .nodes()
            .iter()
            .filter(|node| node.role == Role::Manager)
            .map(|node| node.name.as_str())
            .collect();
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let name = format!("{MARK}-{number}");
            if create(bench, managers[number % managers.len()], &name).unwrap_or(false) {
                self.acknowledged().insert(name);
            } else {
                self.n_refused.fetch_add(1, Ordering::Relaxed);
            }
            std::thread::sleep(WRITE_PAUSE);
        }
    }

    /// Every manager has all that was acknowledged before it was asked.
    fn check(&self, bench: &Bench) -> Outcome {
        let wanted = self.acknowledged().clone();
        for node in bench.lab.nodes().iter().filter(|node| node.role == Role::Manager) {
            let shown = bench.lab.docker(&node.name, &["service", "ls", "--format", "{{.Name}}"])?;
            let shown: BTreeSet<&str> = shown.lines().collect();
            let lost: Vec<_> = wanted.iter().filter(|name| !shown.contains(name.as_str())).collect();
            ensure!(lost.is_empty(), "{} lacks what was acknowledged: {lost:?}", node.name);
        }
        Ok(())
    }
}

/// A service without tasks. False if no one said that it is there.
fn create(bench: &Bench, manager: &str, name: &str) -> Result<bool> {
    let socket = format!("unix://{}", bench.lab.socket(manager)?.display());
    let words = ["service", "create", "--quiet", "--detach", "--no-resolve-image", "--replicas", "0"];
    let args = [&[WRITE_LIMIT, "docker", "-H", &socket], &words[..], &["--name", name, "whoami:1"]].concat();
    Ok(bench_lab::try_run("timeout", &args)?.success())
}

/// No name that was written is to be read in a manager's data.
fn nothing_in_the_clear(bench: &Bench) -> Outcome {
    for node in bench.lab.nodes().iter().filter(|node| node.role == Role::Manager) {
        let raft = bench.lab.swarm_dir(&node.name)?.join("raft");
        ensure!(fs::read_dir(&raft)?.next().is_some(), "{} has no data", raft.display());
        let found = bench_lab::try_run("grep", &["-rlaF", MARK, &raft.to_string_lossy()])?;
        ensure!(!found.success(), "in the clear: {}", found.text());
    }
    Ok(())
}
