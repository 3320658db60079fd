//! Containers that no service made, in real sandboxes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use control_model::executor::{Executor as _, Provisions, SandboxPaths};
use control_model::object::NetworkAttachment;
use control_model::spec::{ContainerSpec, Mount, PortConfig, Protocol, PublishMode, TaskSpec};
use control_model::standalone::{
    AttachRequest, ConsoleSize, NetworkMode, RestartRule, StandaloneSpec, WaitFor,
};
use control_model::{NetworkId, NodeId, OutputStream, TaskId};
use control_runtime::{
    Attacher, Attachment, ContainerInfo, Ground, NodeExecutor, Phase, Standalone, StandaloneError,
};
use dataplane_model::{DataPlane, Generation, NodeView, Report, SandboxStatus, Table};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::common::{PATIENCE, TestNode};

const RUNC: &str = "/usr/sbin/runc";
const IMAGE: &str = "toolbox:1";

/// A data plane for which each sandbox is the test's.
struct OneSandbox(watch::Sender<Report>);

impl DataPlane for OneSandbox {
    fn set_view(&self, _: NodeView) {}

    fn watch(&self) -> watch::Receiver<Report> {
        self.0.subscribe()
    }
}

/// A node in a swarm. Its view is that of the standalone containers alone.
struct World {
    node: TestNode,
    standalone: Standalone,
    dataplane: Arc<OneSandbox>,
    views: watch::Sender<Option<Arc<NodeView>>>,
    agent: JoinHandle<()>,
    calls: Calls,
}

/// What was asked of the managers, and what became of it.
type Calls = Arc<Mutex<Vec<String>>>;

/// Managers with one network, `open`, and the agent that they have assign its places.
struct Managers {
    agent: Arc<NodeExecutor>,
    sandbox: SandboxPaths,
    calls: Calls,
}

#[async_trait]
impl Attacher for Managers {
    async fn attach(&self, request: AttachRequest) -> Result<(), String> {
        if request.network != "open" {
            return Err(format!("rpc error: code = NotFound desc = network {} not found", request.network));
        }
        self.note(format!("attach {} {:?}", request.name, request.aliases.first()));
        let mut task = request.task(NodeId::from_bits(9), NetworkId::from_bits(5));
        let address = "10.0.9.7/24".parse().expect("an address");
        task.attachments =
            vec![NetworkAttachment { network: NetworkId::from_bits(5), address, aliases: Vec::new() }];
        let (agent, sandbox, calls) = (self.agent.clone(), self.sandbox.clone(), self.calls.clone());
        tokio::spawn(async move {
            agent.prepare(&task, &Provisions::default()).await.expect("it waits");
            let status = agent.start(&task, &sandbox).await.expect("it waits");
            let exit = agent.wait(task.id).await.expect("it ends");
            agent.remove(task.id).await.expect("nothing is left");
            calls.lock().expect("no panic").push(format!("over {} {}", status.container_id.len(), exit.code));
        });
        Ok(())
    }

    async fn detach(&self, _: TaskId) -> Result<(), String> {
        self.note("detach".to_owned());
        Ok(())
    }
}

impl Managers {
    fn note(&self, call: String) {
        self.calls.lock().expect("no panic").push(call);
    }
}

impl World {
    async fn new() -> Self {
        let node = TestNode::new(RUNC, &[]);
        node.import(IMAGE, &[r#"ENTRYPOINT ["/toolbox"]"#, "EXPOSE 80"]).await;
        Self::of(node)
    }

    fn of(node: TestNode) -> Self {
        let standalone = Standalone::new(node.oci.clone());
        let dataplane = Arc::new(OneSandbox(watch::Sender::new(Report::default())));
        let views = watch::Sender::new(Some(Arc::new(view())));
        let (mut wanted, netns) = (standalone.sandboxes(), node.sandbox.netns.clone());
        let (reports, shown) = (dataplane.clone(), views.clone());
        let agent = tokio::spawn(async move {
            loop {
                let sandboxes = wanted.borrow_and_update().clone();
                let ready = |id: &_| (Clone::clone(id), SandboxStatus::Ready { netns: netns.clone() });
                let report = Report { sandboxes: sandboxes.keys().map(ready).collect(), ..Report::default() };
                shown.send_replace(Some(Arc::new(NodeView { sandboxes, ..view() })));
                reports.0.send_replace(report);
                if wanted.changed().await.is_err() {
                    return;
                }
            }
        });
        standalone.resume();
        let world = Self { node, standalone, dataplane, views, agent, calls: Calls::default() };
        world.standalone.enter(world.ground());
        world
    }

    fn ground(&self) -> Ground {
        let executor = NodeExecutor { oci: self.node.oci.clone(), standalone: self.standalone.clone() };
        let managers = Managers {
            agent: Arc::new(executor),
            sandbox: self.node.sandbox.clone(),
            calls: self.calls.clone(),
        };
        Ground {
            dataplane: self.dataplane.clone(),
            views: self.views.subscribe(),
            attacher: Arc::new(managers),
        }
    }

    /// As a daemon that was killed and started again; `between` is done while there is none.
    fn reopened(self, between: impl FnOnce(&TestNode)) -> Self {
        let Self { mut node, standalone, agent, .. } = self;
        agent.abort();
        standalone.shut_down();
        between(&node);
        node.reopen(RUNC);
        Self::of(node)
    }

    async fn create(&self, name: &str, spec: StandaloneSpec) -> String {
        self.standalone.create(name, spec).await.expect("created")
    }

    /// Made and started.
    async fn run(&self, name: &str, spec: StandaloneSpec) -> String {
        let id = self.create(name, spec).await;
        assert!(self.standalone.start(&id).await.expect("started"));
        id
    }

    async fn code(&self, id: &str, what: WaitFor) -> i32 {
        let ended = self.standalone.wait(id, what).expect("known");
        tokio::time::timeout(PATIENCE, ended).await.expect("in time")
    }

    fn info(&self, id: &str) -> ContainerInfo {
        self.node.oci.find_container(id).expect("known")
    }

    fn n_restarts(&self, id: &str) -> u32 {
        self.info(id).record.standalone.expect("it is").n_restarts
    }

    fn lines(&self, id: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.info(id).log).unwrap_or_default();
        text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).map(str::to_owned).collect()
    }

    async fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let waiting = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what}"));
    }

    async fn remove(&self, id: &str) {
        self.standalone.remove(id, true, true).await.expect("removed");
    }
}

fn view() -> NodeView {
    NodeView {
        revision: 1,
        generation: Generation::default(),
        vtep: [198, 18, 0, 1].into(),
        vxlan_port: 4789,
        ingress: None,
        networks: Table::new(),
        sandboxes: Table::new(),
        remote_endpoints: Table::new(),
        services: Table::new(),
        peers: Table::new(),
    }
}

fn spec(arguments: &[&str]) -> StandaloneSpec {
    let container = ContainerSpec {
        image: IMAGE.to_owned(),
        args: arguments.iter().map(|&argument| argument.to_owned()).collect(),
        ..ContainerSpec::default()
    };
    StandaloneSpec { task: TaskSpec { container, ..TaskSpec::default() }, ..StandaloneSpec::default() }
}

fn with_input(arguments: &[&str]) -> StandaloneSpec {
    let mut spec = StandaloneSpec { stdin_once: true, ..spec(arguments) };
    spec.task.container.open_stdin = true;
    spec
}

/// All that comes of either stream.
async fn written(mut attached: Attachment) -> [Vec<u8>; 2] {
    let mut written = [Vec::new(), Vec::new()];
    let all = async {
        while let Some((stream, bytes)) = attached.output.recv().await {
            written[usize::from(stream == OutputStream::Stderr)].extend(bytes);
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("in time");
    written
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_ends_and_starts_again_with_its_files_and_its_output() {
    let world = World::new().await;
    let id = world.create("web", spec(&["has", "/tmp/x"])).await;
    assert_eq!((id.len(), world.info("web").state), (64, "created"));
    assert_eq!(world.code(&id, WaitFor::NotRunning).await, 0, "it does not run");
    let missing = world.standalone.wait(&id, WaitFor::NextExit).expect("known");
    world.standalone.start(&id).await.expect("started");
    assert_eq!(missing.await, 1, "the file is not there");
    assert_eq!((world.info("web").state, world.lines(&id)), ("exited", vec!["no /tmp/x".to_owned()]));

    let at = world.info(&id).log.with_file_name("rootfs").join("tmp/x");
    std::fs::write(at, "written").expect("the files are there");
    assert!(world.standalone.start(&id).await.expect("started"));
    assert_eq!(world.code(&id, WaitFor::NotRunning).await, 0);
    assert_eq!(world.lines(&id), ["no /tmp/x", "/tmp/x is there"]);
    assert!(world.node.oci.list_ours().await.expect("listed").is_empty(), "it is none of a task");
    assert!(world.standalone.sandboxes().borrow().is_empty(), "its sandbox is given back");

    let removed = world.standalone.wait(&id, WaitFor::Removed).expect("known");
    world.standalone.remove(&id, false, false).await.expect("removed");
    assert_eq!(removed.await, 0);
    world.node.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_unique_and_can_be_changed() {
    let world = World::new().await;
    let id = world.create("web", spec(&["stay"])).await;
    let taken = world.standalone.create("web", spec(&["stay"])).await.expect_err("taken");
    let words = format!(
        "Conflict. The container name \"/web\" is already in use by container \"{id}\". You have to remove (or rename) that \
         container to be able to reuse that name."
    );
    assert_eq!(taken.to_string(), words);
    let invalid = world.standalone.create("w b", spec(&["stay"])).await.expect_err("no name");
    assert!(invalid.to_string().starts_with("Invalid container name (w b), only"), "{invalid}");
    let absent = StandaloneSpec {
        task: TaskSpec {
            container: ContainerSpec { image: "absent:1".into(), ..ContainerSpec::default() },
            ..TaskSpec::default()
        },
        ..StandaloneSpec::default()
    };
    let missing = world.standalone.create("other", absent).await.expect_err("no image");
    assert!(matches!(missing, StandaloneError::Image(_)), "{missing}");

    assert_eq!(world.standalone.rename(&id, "other").expect("renamed"), "web");
    assert_eq!(world.info("other").record.container_id, id);
    let drawn = world.create("", spec(&["stay"])).await;
    assert!(world.info(&drawn).record.name.contains('_'));
    let again = world.create("web", spec(&["stay"])).await;
    for id in [id, drawn, again] {
        world.remove(&id).await;
    }
    world.node.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_attached_has_every_byte() {
    let world = World::new().await;
    let id = world.create("", with_input(&["copy", "+", "warn", "over", "+", "print", "no line feed"])).await;
    let mut attached = world.node.oci.attach(&id, true).expect("known");
    let mut input = attached.input.take().expect("it reads");
    world.standalone.start(&id).await.expect("started");
    let sent: Vec<u8> = (0..3_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();
    let (expected, speaking) = (sent.clone(), async move {
        input.write_all(&sent).await.expect("taken");
        input.shutdown().await.expect("ended");
    });
    let (written, ()) = tokio::join!(written(attached), speaking);
    let [out, err] = written;
    assert_eq!((err.as_slice(), out.len()), (&b"over\n"[..], expected.len() + "no line feed".len()));
    assert!(out.starts_with(&expected) && out.ends_with(b"no line feed"));
    assert_eq!(world.code(&id, WaitFor::NotRunning).await, 0);
    world.remove(&id).await;

    // One that could not begin has nothing to say, and who waits for it hears so.
    let id = world.create("", spec(&[])).await;
    let waiting = world.node.oci.attach(&id, false).expect("known");
    world.remove(&id).await;
    assert_eq!(written_by(waiting).await, "");
    let mut missing = spec(&[]);
    missing.task.container.command = vec!["nothing".to_owned()];
    let id = world.create("", missing).await;
    let waiting = world.node.oci.attach(&id, false).expect("known");
    let refused = world.standalone.start(&id).await.expect_err("no such program");
    assert!(matches!(refused, StandaloneError::Refused(_)), "{refused}");
    assert!(refused.to_string().contains("executable file not found in $PATH: unknown"), "{refused}");
    assert_eq!((written_by(waiting).await.as_str(), world.info(&id).state), ("", "created"));
    world.remove(&id).await;
    world.node.assert_clean();
}

async fn written_by(attached: Attachment) -> String {
    let [out, err] = written(attached).await;
    String::from_utf8_lossy(&[out, err].concat()).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_a_size_and_stays_open_for_others() {
    let world = World::new().await;
    let mut terminal = with_input(&["size", "+", "line", "+", "size"]);
    terminal.task.container.tty = true;
    terminal.console = Some(ConsoleSize { rows: 33, columns: 99 });
    let id = world.create("", terminal).await;
    let mut first = world.node.oci.attach(&id, true).expect("known");
    world.standalone.start(&id).await.expect("started");
    let (_, size) = first.output.recv().await.expect("it writes");
    assert_eq!(String::from_utf8_lossy(&size), "33 99\r\n");
    drop(first);
    world.node.oci.resize(&id, ConsoleSize { rows: 40, columns: 120 }).expect("sized");
    let mut second = world.node.oci.attach(&id, true).expect("known");
    second.input.as_mut().expect("it reads").write_all(b"hello\n").await.expect("taken");
    let text = written_by(second).await;
    // The terminal's echo comes first.
    assert_eq!(text, "hello\r\nread hello\r\n40 120\r\n");
    assert_eq!(
        world.code(&id, WaitFor::NotRunning).await,
        0,
        "its input did not end with the first client's"
    );
    let over = world.node.oci.resize(&id, ConsoleSize { rows: 1, columns: 1 }).expect_err("it has ended");
    assert!(over.to_string().ends_with("is not running"), "{over}");
    world.remove(&id).await;
    world.node.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_start_containers_again_until_their_users_stop_them() {
    let world = World::new().await;
    let with = |rule, arguments: &[&str]| StandaloneSpec { restart: rule, ..spec(arguments) };
    let fails = with(RestartRule::OnFailure { max_attempts: 2 }, &["echo", "run", "+", "exit", "3"]);
    let id = world.run("fails", fails).await;
    assert_eq!(world.code(&id, WaitFor::NextExit).await, 3);
    assert_eq!((world.n_restarts(&id), world.lines(&id).len()), (2, 3));
    world.remove(&id).await;

    let id = world.run("always", with(RestartRule::Always, &["echo", "run"])).await;
    world.until("three runs", || world.lines(&id).len() >= 3).await;
    world
        .until("a pause", || world.standalone.phase(world.info(&id).record.task) == Some(Phase::Restarting))
        .await;
    let words =
        world.standalone.remove(&id, false, false).await.expect_err("it runs, or is about to").to_string();
    assert!(words.starts_with("cannot remove container \"always\": container is r"), "{words}");
    assert!(words.ends_with("ing: stop the container before removing or force remove"), "{words}");
    assert!(world.standalone.stop(&id, None, None).await.expect("stopped"));
    let n_runs = world.lines(&id).len();
    assert_eq!((world.code(&id, WaitFor::NotRunning).await, world.info(&id).state), (0, "exited"));
    assert!(world.standalone.sandboxes().borrow().is_empty(), "its sandbox is given back");
    // A start by its user begins anew.
    world.standalone.start(&id).await.expect("started");
    world.until("another run", || world.lines(&id).len() > n_runs).await;
    world.standalone.set_rule(&id, RestartRule::No).expect("another rule");
    world.code(&id, WaitFor::NotRunning).await;
    world.remove(&id).await;

    let id = world.run("stays", with(RestartRule::Always, &["stay"])).await;
    world.standalone.kill(&id, "SIGKILL").await.expect("killed");
    assert_eq!(world.code(&id, WaitFor::NotRunning).await, 137, "its user has ended it");
    world.standalone.start(&id).await.expect("started");
    world.standalone.restart(&id, None, Some(Duration::ZERO)).await.expect("started again");
    assert_eq!(world.info(&id).state, "running");
    world.remove(&id).await;
    world.node.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_begins_anew_finds_its_containers() {
    let world = World::new().await;
    let stays = |rule| StandaloneSpec { restart: rule, ..spec(&["echo", "up", "+", "stay"]) };
    let running = world.run("running", stays(RestartRule::No)).await;
    let always = world.run("always", stays(RestartRule::Always)).await;
    let stopped = world.run("stopped", stays(RestartRule::UnlessStopped)).await;
    world.standalone.stop(&stopped, Some("SIGKILL"), None).await.expect("stopped");
    let volatile =
        world.run("volatile", StandaloneSpec { auto_remove: true, ..stays(RestartRule::No) }).await;
    let half_made = world.create("half-made", stays(RestartRule::No)).await;
    let pid = world.info(&running).pid;
    let world = world.reopened(|node| {
        let log = node.oci.find_container(&half_made).expect("known").log;
        std::fs::remove_file(log.with_file_name("bundle").join("config.json"))
            .expect("the last that is made");
        // Its end is seen by nobody.
        let pid = node.oci.find_container(&volatile).and_then(|one| one.pid).expect("it runs");
        nix_kill(pid);
    });
    assert_eq!((world.info(&running).state, world.info(&running).pid), ("running", pid));
    let wanted = world.standalone.sandboxes().borrow().clone();
    for name in ["running", "always"] {
        assert!(wanted.values().any(|row| row.task_name == name), "{name}: its sandbox is wanted as it was");
    }
    world.until("it goes", || world.node.oci.find_container(&volatile).is_none()).await;
    assert!(world.node.oci.find_container("half-made").is_none(), "nobody has heard of it");
    let mut attached = world.node.oci.attach(&running, false).expect("known");

    // As behind a reboot: no process, no mount, nothing in the run directory.
    let id = running.clone();
    let world = world.reopened(move |node| {
        for name in ["running", "always"] {
            reboot(node, &node.oci.find_container(name).expect("known"));
        }
        assert_eq!(node.oci.find_container(&id).map(|one| one.state), Some("running"), "nobody has looked");
    });
    assert!(attached.output.recv().await.is_none());
    world
        .until("always is up", || {
            world.lines(&always) == ["up", "up"] && world.info(&always).state == "running"
        })
        .await;
    assert_eq!(world.code(&running, WaitFor::NotRunning).await, 255);
    assert_eq!((world.info(&stopped).state, world.info(&always).state), ("exited", "running"));
    world.standalone.leave().await;
    assert_eq!((world.info(&always).state, world.standalone.sandboxes().borrow().len()), ("exited", 0));
    let refused = world.standalone.start(&running).await.expect_err("no data plane").to_string();
    assert!(refused.contains("docker swarm init"), "{refused}");
    world.standalone.enter(world.ground());
    world.until("always is back", || world.info(&always).state == "running").await;
    for id in [running, always, stopped] {
        world.remove(&id).await;
    }
    world.node.assert_clean();
}

fn nix_kill(pid: i32) {
    let killed =
        std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().expect("kill runs");
    assert!(killed.success());
}

fn reboot(node: &TestNode, container: &ContainerInfo) {
    let run = node.dir.path().join("run/tasks").join(container.record.task.to_string());
    let conmon = std::fs::read_to_string(run.join("conmon.pid")).expect("it runs");
    nix_kill(conmon.trim().parse().expect("a process id"));
    let delete = std::process::Command::new("runc")
        .arg("--root")
        .arg(node.dir.path().join("run/oci"))
        .args(["delete", "--force", &container.record.container_id])
        .status();
    assert!(delete.expect("runc runs").success());
    let unmounted = std::process::Command::new("umount").arg(container.log.with_file_name("rootfs")).status();
    assert!(unmounted.expect("umount runs").success());
    std::fs::remove_dir_all(run).expect("removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_one_containers_and_free_ones_are_found() {
    let world = World::new().await;
    let port = |target, published| PortConfig::new(Protocol::Tcp, target, published, PublishMode::Host);
    let with = |ports: &[PortConfig]| StandaloneSpec { ports: ports.to_vec(), ..spec(&["stay"]) };
    let first = world.run("first", with(&[port(80, 40_123), port(81, 0)])).await;
    let ports = world.info(&first).record.ports;
    assert_eq!((ports[0].published, ports[1].target), (40_123, 81));
    assert!(ports[1].published >= 49_153, "{ports:?}");
    let sandboxes = world.standalone.sandboxes().borrow().clone();
    let row = sandboxes.values().next().expect("one");
    assert_eq!((row.task_name.as_str(), row.host_ports.len(), row.egress), ("first", 2, true));

    let second = world.create("second", with(&[port(80, 40_123)])).await;
    let taken = world.standalone.start(&second).await.expect_err("taken").to_string();
    let start = "failed to set up container networking: driver failed programming external connectivity on endpoint second (";
    assert!(taken.starts_with(start), "{taken}");
    assert!(taken.ends_with("): Bind for 0.0.0.0:40123 failed: port is already allocated"), "{taken}");
    assert_eq!(world.info(&second).state, "created");
    world.remove(&first).await;
    assert!(world.standalone.start(&second).await.expect("started"), "the port is free");

    let listener = std::net::TcpListener::bind("0.0.0.0:0").expect("a free port");
    let number = listener.local_addr().expect("bound").port();
    let third = world.create("third", with(&[port(80, number)])).await;
    let taken = world.standalone.start(&third).await.expect_err("a process has it").to_string();
    assert!(
        taken.ends_with(&format!("failed to bind host port 0.0.0.0:{number}/tcp: address already in use")),
        "{taken}"
    );

    let all = StandaloneSpec { publishes_all: true, network: NetworkMode::None, ..with(&[]) };
    let fourth = world.run("fourth", all).await;
    assert_eq!(world.info(&fourth).record.ports[0].target, 80, "what the image exposes");
    for id in [second, third, fourth] {
        world.remove(&id).await;
    }
    world.node.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_go_when_their_user_says_so() {
    let world = World::new().await;
    let host = world.node.dir.path().join("host/dir");
    let with_volume = |auto_remove| {
        let mut spec = StandaloneSpec { auto_remove, ..spec(&["ls", "/data"]) };
        spec.task.container.mounts.push(Mount::volume("/data"));
        spec.made_dirs.push(host.display().to_string());
        spec
    };
    let id = world.run("kept", with_volume(false)).await;
    world.code(&id, WaitFor::NotRunning).await;
    assert_eq!(world.lines(&id), ["seed"], "what the image has there");
    assert!(host.is_dir());
    world.standalone.start(&id).await.expect("started");
    world.code(&id, WaitFor::NotRunning).await;
    let names = || -> Vec<String> {
        world.node.oci.volumes().expect("listed").into_iter().map(|volume| volume.name).collect()
    };
    let [volume] = names().try_into().expect("one");
    world.standalone.remove(&id, false, false).await.expect("removed");
    assert_eq!(names(), std::slice::from_ref(&volume));
    world.node.oci.remove_volume(&volume).expect("nobody has it");

    let id = world.create("goes", with_volume(true)).await;
    let removed = world.standalone.wait(&id, WaitFor::Removed).expect("known");
    world.standalone.start(&id).await.expect("started");
    assert_eq!(tokio::time::timeout(PATIENCE, removed).await.expect("in time"), 0);
    assert!(names().is_empty());
    world.node.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_has_a_place_in_a_network_of_the_swarm() {
    let world = World::new().await;
    let network = |name: &str| NetworkMode::Swarm { network: name.into(), aliases: vec!["db".into()] };
    let hosts = StandaloneSpec { network: network("open"), ..spec(&["cat", "/etc/hosts", "+", "stay"]) };
    let id = world.run("web", hosts).await;
    world.until("it writes", || !world.lines(&id).is_empty()).await;
    let own_line = format!("10.0.9.7\t{}", &id[..12]);
    assert!(world.lines(&id).contains(&own_line), "{:?}", world.lines(&id));
    let place = world.info(&id).record.standalone.and_then(|own| own.place).expect("it has one");
    assert_eq!(
        (place.address.to_string().as_str(), place.mac.as_str()),
        ("10.0.9.7/24", "02:42:0a:00:09:07")
    );
    assert!(world.standalone.sandboxes().borrow().is_empty(), "the swarm gives its sandbox");

    let executor = NodeExecutor { oci: world.node.oci.clone(), standalone: world.standalone.clone() };
    let found = executor.list_ours().await.expect("listed");
    let status = found.first().map(|one| (one.status.container_id.clone(), one.status.pid));
    assert_eq!(status, Some((id.clone(), world.info(&id).pid.expect("it runs"))));
    executor.terminate(found[0].task).await.expect("killed");
    assert_eq!(world.info(&id).state, "exited", "the place goes, and the container with it");
    let calls = || world.calls.lock().expect("no panic").clone();
    world.until("the managers hear of its end", || calls().len() == 2).await;
    assert_eq!(calls(), ["attach web Some(\"db\")", "over 64 0"]);

    let none = world.create("none", StandaloneSpec { network: network("none"), ..spec(&["stay"]) }).await;
    let refused = world.standalone.start(&none).await.expect_err("no such network").to_string();
    let words = "Could not attach to network none: rpc error: code = NotFound desc = network none not found";
    assert_eq!(refused, words);
    world.until("the place is given up", || calls().len() == 3).await;
    for id in [id, none] {
        world.remove(&id).await;
    }
    world.node.assert_clean();
}
