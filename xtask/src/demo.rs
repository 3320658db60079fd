//! `cargo xtask demo`: a real cluster, a real service, and what happens when things die. Every command that it runs
//! is printed with its real output.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bench_lab::{Answer, Lab, LabOptions, Role, Traffic, TrafficReport, request, wait_until};

use crate::artifacts::{Profile, Programs, programs};
use crate::{lab as lab_command, setup};

/// The demo's lab; its own name, so that a lab that somebody plays with stays.
const LAB: &str = "demo";
const PORT: u16 = 8080;
/// Requests per node when the spread is shown.
const N_REQUESTS_PER_NODE: usize = 200;
/// Requests a second while something is changed or dies.
const RATE_PER_S: u32 = 100;
const SETTLE_LIMIT: Duration = Duration::from_mins(1);

/// Runs the demo; `keep` leaves the cluster up.
pub fn run(keep: bool) -> Result<()> {
    setup::run(setup::Scope::Demo)?;
    println!("Building meshd, meshctl and the demo's image (minutes at the first time) …");
    let programs = programs(Profile::Dev)?;
    let started = Instant::now();
    if Lab::exists(LAB)? {
        Lab::open(LAB)?.down()?;
    }
    let demo = Demo::up(programs)?;
    let result = demo.play();
    if keep {
        println!("\nThe cluster is up. Point docker at it:\n");
        lab_command::print_status(&demo.lab);
        println!("\nTake it down with: cargo xtask lab down --name {LAB}");
    } else {
        demo.lab.down()?;
    }
    result?;
    println!("\nDone in {:.0} s.", started.elapsed().as_secs_f64());
    Ok(())
}

struct Demo {
    lab: Lab,
    programs: Programs,
}

impl Demo {
    fn up(programs: Programs) -> Result<Self> {
        heading("A cluster of three managers and two workers, joined by `docker swarm init` and `join`");
        let options = LabOptions {
            name: LAB.into(),
            managers: 3,
            workers: 2,
            meshd: programs.meshd.clone(),
            meshd_args: Vec::new(),
            is_ipv6_only: false,
            has_docker: false,
        };
        let lab = Lab::up(&options)?;
        Ok(Self { lab, programs })
    }

    fn play(&self) -> Result<()> {
        self.docker(&["node", "ls"])?;
        self.import_images()?;
        self.create_services()?;
        self.show_spread()?;
        self.show_discovery()?;
        self.scale_and_update()?;
        self.kill_agent()?;
        self.lose_node()?;
        self.kill_leader()?;
        self.show_accounts()
    }

    fn import_images(&self) -> Result<()> {
        heading("The demo's image, imported on every node");
        let tar = self.programs.whoami_image.to_string_lossy().into_owned();
        for node in self.lab.nodes() {
            for version in ["1", "2"] {
                let env = format!("ENV VERSION={version}");
                let tag = format!("whoami:{version}");
                let entry = "ENTRYPOINT [\"/whoami\"]";
                self.lab.docker(&node.name, &["import", "--change", entry, "--change", &env, &tar, &tag])?;
            }
        }
        self.docker(&["images"]).map(drop)
    }

    fn create_services(&self) -> Result<()> {
        heading("An overlay network, and a service of six tasks published on port 8080 of every node");
        self.docker(&["network", "create", "-d", "overlay", "app"])?;
        let publish = format!("{PORT}:80");
        self.docker(&[
            "service",
            "create",
            "--quiet",
            "--no-resolve-image",
            "--name",
            "whoami",
            "--network",
            "app",
            "--replicas",
            "6",
            "--publish",
            &publish,
            "--env",
            "NODE={{.Node.Hostname}}",
            "--env",
            "TASK={{.Task.Name}}",
            "--update-delay",
            "0s",
            "whoami:1",
        ])?;
        self.docker(&[
            "service",
            "create",
            "--quiet",
            "--no-resolve-image",
            "--name",
            "client",
            "--network",
            "app",
            "whoami:1",
        ])?;
        self.docker(&["service", "ls"])?;
        self.docker(&["service", "ps", "whoami"]).map(drop)
    }

    fn show_spread(&self) -> Result<()> {
        heading("Every node answers, every task is reached, every task sees the client's true address");
        let answers = self.ask_every_node()?;
        let mut by_task: BTreeMap<&str, usize> = BTreeMap::new();
        for answer in &answers {
            *by_task.entry(answer.get("task")).or_default() += 1;
        }
        let client = IpAddr::V4(self.lab.client_address());
        let n_true = answers.iter().filter(|a| a.peer() == Some(client)).count();
        println!(
            "{} requests from {client} to port {PORT} of {} nodes",
            answers.len(),
            self.lab.nodes().len()
        );
        for (task, count) in &by_task {
            println!("  {count:>4} answered by {task}");
        }
        println!("  {n_true} of {} saw {client}", answers.len());
        ensure!(n_true == answers.len(), "a task saw another address than the client's");
        ensure!(by_task.len() == 6, "only {} of 6 tasks were reached", by_task.len());
        Ok(())
    }

    fn show_discovery(&self) -> Result<()> {
        heading("Names inside a task: the service's virtual address, and all its tasks");
        for words in [&["resolve", "whoami"][..], &["resolve", "tasks.whoami"], &["get", "http://whoami/"]] {
            let output = self.inside_client_task(words)?;
            println!("(in a task) $ whoami {}\n{}", words.join(" "), indent(&output));
        }
        Ok(())
    }

    fn scale_and_update(&self) -> Result<()> {
        heading("Ten tasks, then another image, while requests keep coming");
        let traffic = self.traffic()?;
        self.docker(&["service", "scale", "--detach", "whoami=10"])?;
        let ((), took) =
            wait_until(
                "ten tasks",
                SETTLE_LIMIT,
                || Ok((self.running("whoami")?.len() == 10).then_some(())),
            )?;
        println!("    10 of 10 tasks run {:.1} s later", took.as_secs_f64());
        self.docker(&[
            "service",
            "update",
            "--quiet",
            "--no-resolve-image",
            "--update-parallelism",
            "2",
            "--image",
            "whoami:2",
            "whoami",
        ])?;
        print_traffic(&traffic.stop()?);
        self.docker(&["service", "ls"]).map(drop)
    }

    fn kill_agent(&self) -> Result<()> {
        let node = self.node_with_task(Role::Worker)?;
        heading(&format!("kill -9 of {node}'s meshd: its tasks answer on"));
        self.lab.kill(&node)?;
        let address = SocketAddr::new(self.lab.node(&node)?.address.into(), PORT);
        let answers =
            self.lab.inside("client", || (0..20).map(|_| request(address)).collect::<Result<Vec<_>>>())??;
        println!(
            "{} of 20 requests to port {PORT} of {node} answered while its meshd is dead",
            answers.len()
        );
        self.lab.start(&node)?;
        println!("meshd of {node} is started again");
        Ok(())
    }

    fn lose_node(&self) -> Result<()> {
        let node = self.node_with_task(Role::Worker)?;
        heading(&format!("{node} loses its network: its tasks come up elsewhere"));
        let others: Vec<SocketAddr> = (self.lab.nodes().iter())
            .filter(|n| n.name != node)
            .map(|n| SocketAddr::new(n.address.into(), PORT))
            .collect();
        let traffic = Traffic::start(&self.lab, &others, RATE_PER_S)?;
        self.lab.isolate(&node)?;
        let ((), took) = wait_until("the lost tasks to run elsewhere", SETTLE_LIMIT, || {
            let rows = self.running("whoami")?;
            Ok((rows.len() == 10 && rows.iter().all(|(_, on)| *on != node)).then_some(()))
        })?;
        println!(
            "10 of 10 tasks run on the other nodes {:.1} s after the plug was pulled",
            took.as_secs_f64()
        );
        print_traffic(&traffic.stop()?);
        self.docker(&["node", "ls"])?;
        self.lab.heal(&node)
    }

    fn kill_leader(&self) -> Result<()> {
        let first = &self.lab.nodes()[0].name;
        let leader = self.lab.leader(first)?.context("no leader")?;
        heading(&format!("kill -9 of the leader, {leader}: a new one leads, traffic never stops"));
        let other = (self.lab.nodes().iter())
            .find(|n| n.role == Role::Manager && n.name != leader)
            .context("one manager only")?;
        let traffic = self.traffic()?;
        self.lab.kill(&leader)?;
        let (new, took) = wait_until("a new leader", SETTLE_LIMIT, || {
            Ok(self.lab.leader(&other.name)?.filter(|name| *name != leader))
        })?;
        println!("{new} leads {:.1} s after the kill", took.as_secs_f64());
        self.docker_on(&other.name, &["service", "scale", "--detach", "whoami=8"])?;
        print_traffic(&traffic.stop()?);
        self.lab.start(&leader)?;
        self.docker_on(&other.name, &["node", "ls"]).map(drop)
    }

    fn show_accounts(&self) -> Result<()> {
        let node = &self.lab.nodes()[0].name;
        heading(&format!("Every packet that {node}'s BPF programs saw is accounted for"));
        let socket = format!("unix://{}", self.lab.socket(node)?.display());
        let meshctl = self.programs.meshctl.to_string_lossy().into_owned();
        println!("$ meshctl drops\n{}", indent(&bench_lab::run(&meshctl, &["-H", &socket, "drops"])?));
        Ok(())
    }

    /// `docker` on the first manager, command and output shown.
    fn docker(&self, args: &[&str]) -> Result<String> {
        self.docker_on(&self.lab.nodes()[0].name, args)
    }

    fn docker_on(&self, node: &str, args: &[&str]) -> Result<String> {
        println!("$ docker {}", args.join(" "));
        let output = self.lab.docker(node, args)?;
        println!("{}", indent(&output));
        Ok(output)
    }

    fn traffic(&self) -> Result<Traffic> {
        let targets: Vec<SocketAddr> =
            self.lab.nodes().iter().map(|n| SocketAddr::new(n.address.into(), PORT)).collect();
        Traffic::start(&self.lab, &targets, RATE_PER_S)
    }

    fn ask_every_node(&self) -> Result<Vec<Answer>> {
        let targets: Vec<SocketAddr> =
            self.lab.nodes().iter().map(|n| SocketAddr::new(n.address.into(), PORT)).collect();
        self.lab.inside("client", || {
            let turns = targets.iter().cycle().take(targets.len() * N_REQUESTS_PER_NODE);
            turns.map(|to| request(*to).with_context(|| format!("request to {to}"))).collect()
        })?
    }

    /// (task name, node) of each task that `service ps` shows as running.
    fn running(&self, service: &str) -> Result<Vec<(String, String)>> {
        let node = self.live_manager()?;
        let rows = self.lab.docker(
            &node,
            &[
                "service",
                "ps",
                service,
                "--filter",
                "desired-state=running",
                "--format",
                "{{.Name}} {{.Node}} {{.CurrentState}}",
            ],
        )?;
        let rows = rows.lines().filter_map(|line| {
            let mut words = line.split(' ');
            let (name, on, state) = (words.next()?, words.next()?, words.next()?);
            (state == "Running").then(|| (name.to_owned(), on.to_owned()))
        });
        Ok(rows.collect())
    }

    fn live_manager(&self) -> Result<String> {
        let rows = self.lab.status();
        let live =
            self.lab.nodes().iter().zip(&rows).find(|(n, row)| n.role == Role::Manager && row.pid.is_some());
        Ok(live.context("no manager runs")?.0.name.clone())
    }

    fn node_with_task(&self, role: Role) -> Result<String> {
        let running = self.running("whoami")?;
        let mut nodes = self.lab.nodes().iter().filter(|n| n.role == role);
        let node = nodes.find(|n| running.iter().any(|(_, on)| *on == n.name));
        Ok(node.context("no such node has a task")?.name.clone())
    }

    /// Runs the image's program in the client service's sandbox.
    fn inside_client_task(&self, words: &[&str]) -> Result<String> {
        let (_, node) =
            self.running("client")?.into_iter().next().context("the client service has no task")?;
        let id = self
            .lab
            .docker(&node, &["ps", "--no-trunc", "--filter", "name=client.1", "--format", "{{.Names}}"])?;
        let task = id.rsplit('.').next().context("no container of the client service")?.trim().to_owned();
        let netns = self.lab.socket(&node)?.with_file_name("netns").join(&task);
        let program = self.programs.whoami_image.with_file_name("whoami-rootfs").join("whoami");
        let netns = format!("--net={}", netns.display());
        let program = program.to_string_lossy().into_owned();
        let args: Vec<&str> =
            [netns.as_str(), "--", &program].into_iter().chain(words.iter().copied()).collect();
        bench_lab::run("nsenter", &args)
    }
}

fn heading(text: &str) {
    println!("\n\x1b[1m{text}\x1b[0m");
}

fn indent(text: &str) -> String {
    text.trim_end().lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

fn print_traffic(report: &TrafficReport) {
    println!(
        "meanwhile: {} requests, {} failed, slowest answer {:.0} ms",
        report.n_sent,
        report.n_failed,
        report.slowest.as_secs_f64() * 1000.0
    );
    for (failure, count) in &report.failures {
        println!("    {count} × {failure}");
    }
}
