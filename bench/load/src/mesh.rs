//! The mesh: a lab of real daemons, made for the sections that need it, when the first of them does.

use std::cell::OnceCell;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use bench_lab::{Lab, LabOptions, NodeRecord, wait_until};

use crate::image::{COMMAND, IMAGE, ImageFile};
use crate::netns::Place;

/// Name of the lab; beside one of the user's own.
const LAB: &str = "bench";

/// As in the demo.
pub const N_MANAGERS: usize = 3;
pub const N_NODES: usize = 5;

/// How long a task may take to run, or to be gone.
const TASK_LIMIT: Duration = Duration::from_mins(1);

/// The lab, once somebody asks for it.
#[derive(Default)]
pub struct LazyMesh(OnceCell<Result<Mesh>>);

impl LazyMesh {
    /// The lab, or why there is none.
    pub fn get(&self) -> Result<&Mesh> {
        self.0.get_or_init(Mesh::up).as_ref().map_err(|error| anyhow!("{error:#}"))
    }
}

/// A cluster in namespaces. Taken down when dropped.
pub struct Mesh {
    lab: Lab,
}

impl Mesh {
    fn up() -> Result<Self> {
        let meshd = std::env::var_os("MESH_MESHD")
            .context("MESH_MESHD does not name a meshd; use cargo xtask bench")?;
        ensure!(
            !Lab::exists(LAB)?,
            "a lab {LAB} is up already; take it down by `cargo xtask lab down --name {LAB}`"
        );
        let options = LabOptions {
            name: LAB.to_owned(),
            managers: N_MANAGERS,
            workers: N_NODES - N_MANAGERS,
            meshd: PathBuf::from(meshd),
            meshd_args: Vec::new(),
            is_ipv6_only: false,
            has_docker: false,
        };
        let up = Lab::up(&options);
        let mesh = match up {
            Ok(lab) => Self { lab },
            Err(error) => {
                if let Ok(half) = Lab::open(LAB) {
                    drop(Self { lab: half });
                }
                return Err(error);
            }
        };
        mesh.import_image()?;
        Ok(mesh)
    }

    fn import_image(&self) -> Result<()> {
        let image = ImageFile::new()?;
        let path = image.path();
        let path = path.to_str().context("a path in UTF-8")?;
        for node in self.lab.nodes() {
            self.lab.docker(&node.name, &["import", path, IMAGE])?;
        }
        Ok(())
    }

    pub fn first_node(&self) -> &NodeRecord {
        &self.lab.nodes()[0]
    }

    fn last_node(&self) -> &NodeRecord {
        let nodes = self.lab.nodes();
        &nodes[nodes.len() - 1]
    }

    /// Docker socket of the first node, a manager.
    pub fn socket(&self) -> Result<PathBuf> {
        self.lab.socket(&self.first_node().name)
    }

    /// Where clients of the cluster are.
    pub fn client() -> Place {
        Place::at(format!("/run/netns/{LAB}-client"))
    }

    /// A service on the last node with this port published and forwarded to the same in its only task.
    pub fn publish(&self, port: u16) -> Result<PublishedServer> {
        let publish = format!("published={port},target={port}");
        let service = self.service("bench-http", self.last_node(), &["--publish", &publish])?;
        let sandbox = self.sandbox(&service, self.last_node())?;
        Ok(PublishedServer { sandbox, _service: service })
    }

    /// A task on the first node and one on the last, in one network.
    pub fn task_pair(&self) -> Result<TaskPair> {
        const NETWORK: &str = "bench-net";
        self.docker(&["network", "create", "-d", "overlay", NETWORK])?;
        let from = self.service("bench-from", self.first_node(), &["--network", NETWORK])?;
        let to = self.service("bench-to", self.last_node(), &["--network", NETWORK])?;
        let address = "{{range .NetworksAttachments}}{{.Network.Spec.Name}} {{index .Addresses 0}}\n{{end}}";
        let from_place = self.sandbox(&from, self.first_node())?;
        let to_place = self.sandbox(&to, self.last_node())?;
        let attachments =
            self.docker(&["inspect", "--type", "task", "--format", address, &self.task_of(&to)?])?;
        let cidr =
            attachments.lines().find_map(|line| line.strip_prefix(NETWORK)).context("no address in it")?;
        let address: Ipv4Addr = cidr.trim().split('/').next().unwrap_or_default().parse()?;
        Ok(TaskPair { from: from_place, to: to_place, address, _services: [from, to] })
    }

    /// One task of the idle image on `node`.
    fn service(&self, name: &str, node: &NodeRecord, options: &[&str]) -> Result<MeshService> {
        let constraint = format!("node.hostname=={}", node.name);
        let fixed = [
            "service",
            "create",
            "--detach",
            "--no-resolve-image",
            "--name",
            name,
            "--constraint",
            &constraint,
        ];
        let stop = ["--stop-signal", "SIGKILL"];
        let args: Vec<&str> =
            fixed.iter().chain(&stop).chain(options).chain(&[IMAGE]).chain(COMMAND).copied().collect();
        self.docker(&args)?;
        let service = MeshService { socket: self.socket()?, name: name.to_owned() };
        let running =
            ["service", "ps", "--filter", "desired-state=running", "--format", "{{.CurrentState}}", name];
        wait_until(&format!("{name} to run"), TASK_LIMIT, || {
            let states = self.docker(&running)?;
            Ok(states.lines().any(|state| state.starts_with("Running")).then_some(()))
        })?;
        Ok(service)
    }

    fn task_of(&self, service: &MeshService) -> Result<String> {
        let args = ["service", "ps", "--no-trunc", "-q", "--filter", "desired-state=running", &service.name];
        self.docker(&args)
    }

    /// The network namespace of the service's task.
    fn sandbox(&self, service: &MeshService, node: &NodeRecord) -> Result<Place> {
        let task = self.task_of(service)?;
        let run_dir = self.lab.socket(&node.name)?.parent().map(PathBuf::from).unwrap_or_default();
        let path = run_dir.join("netns").join(&task);
        ensure!(path.exists(), "task {task} has no namespace at {}", path.display());
        Ok(Place::at(path))
    }

    fn docker(&self, args: &[&str]) -> Result<String> {
        self.lab.docker(&self.first_node().name, args)
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if let Err(error) = self.lab.down() {
            eprintln!("bench-load: can't take the lab down: {error:#}");
        }
    }
}

/// A service that ends with this value.
struct MeshService {
    socket: PathBuf,
    name: String,
}

impl Drop for MeshService {
    fn drop(&mut self) {
        let host = format!("unix://{}", self.socket.display());
        if let Err(error) = bench_lab::run("docker", &["-H", &host, "service", "rm", &self.name]) {
            eprintln!("bench-load: {error:#}");
        }
    }
}

/// The task behind a published port.
pub struct PublishedServer {
    pub sandbox: Place,
    _service: MeshService,
}

/// Two tasks on different nodes.
pub struct TaskPair {
    pub from: Place,
    pub to: Place,
    /// Of the second, in the network of both.
    pub address: Ipv4Addr,
    _services: [MeshService; 2],
}
