//! bollard, Rust's client of the Engine API, over the unix socket.

use std::collections::HashMap;

use bollard::errors::Error;
use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use bollard::models::{
    ConfigSpec, EndpointPortConfig, EndpointPortConfigProtocolEnum, EndpointSpec, HealthConfig, Ipam,
    IpamConfig, NetworkAttachmentConfig, NetworkCreateRequest, NodeSpec, NodeSpecAvailabilityEnum,
    SecretSpec, Service, ServiceSpec, ServiceSpecMode, ServiceSpecModeReplicated,
    ServiceSpecModeReplicatedJob, ServiceSpecRollbackConfig, ServiceSpecUpdateConfig,
    ServiceUpdateStatusStateEnum, Task, TaskSpec, TaskSpecContainerSpec, TaskSpecContainerSpecFile,
    TaskSpecContainerSpecSecrets, TaskSpecPlacement, TaskState, VolumeCreateRequest,
};
use bollard::query_parameters::{
    EventsOptionsBuilder, ListContainersOptionsBuilder, ListImagesOptions, ListNodesOptionsBuilder,
    ListServicesOptionsBuilder, ListTasksOptionsBuilder, ListVolumesOptions, LogsOptionsBuilder,
    RemoveVolumeOptions, UpdateNodeOptionsBuilder, UpdateServiceOptionsBuilder,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use control_store::ReplicatedStore as _;
use futures::TryStreamExt as _;
use tokio::io::AsyncWriteExt as _;

use crate::common::Daemon;
use crate::common::world::{MANAGER, WORKER_1};
use crate::manager_with_containers;

const TIMEOUT_S: u64 = 60;
/// How long an update looks at what it has made.
const MONITOR_NS: i64 = 500_000_000;

/// A client that speaks the daemon's version, which it asks for.
async fn connect(daemon: &Daemon) -> Docker {
    let client = Docker::connect_with_unix(&daemon.socket.to_string_lossy(), TIMEOUT_S, API_DEFAULT_VERSION);
    let client = client.expect("a client").negotiate_version().await.expect("a version");
    assert_eq!(client.client_version().to_string(), "1.50");
    client
}

fn filters(pairs: &[(&str, &str)]) -> HashMap<String, Vec<String>> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), vec![(*value).to_owned()])).collect()
}

/// Status and words of what must fail.
fn refusal<T: std::fmt::Debug>(reply: Result<T, Error>) -> (u16, String) {
    match reply {
        Err(Error::DockerResponseServerError { status_code, message }) => (status_code, message),
        other => panic!("not refused: {other:?}"),
    }
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bollard_drives_the_life_of_a_service() {
    let (daemon, _containers) = manager_with_containers().await;
    let client = connect(&daemon).await;
    node_and_swarm(&client).await;
    nodes(&client).await;
    let network = network(&client).await;
    let secret = secret_and_config(&client).await;
    let id = client.create_service(web(&network, &secret), None).await.expect("created").id.expect("an id");
    daemon.running("web", 2).await;
    inspected(&client, &daemon, &id, &network).await;
    tasks(&client, &id).await;
    logs_and_containers(&client, &id).await;
    updated(&client, &daemon, &id).await;
    jobs_and_volumes(&client, &daemon).await;
    let (status, text) = refusal(client.delete_secret("key").await);
    assert_eq!((status, text.contains("is in use by the following service: web")), (400, true), "{text}");
    client.delete_service("web").await.expect("removed");
    daemon.until(|state| state.tasks().iter().count() == 0).await;
    client.delete_secret("key").await.expect("removed");
    client.delete_config("motd").await.expect("removed");
    client.remove_network("app").await.expect("removed");
    events(&client, &id).await;
}

async fn node_and_swarm(client: &Docker) {
    assert_eq!(client.ping().await.expect("it lives"), "OK");
    let info = client.info().await.expect("info");
    let swarm = info.swarm.expect("a swarm");
    assert_eq!((swarm.control_available, swarm.nodes, swarm.managers), (Some(true), Some(3), Some(1)));
    assert_eq!((info.name.as_deref(), info.warnings), (Some("m1"), None));
    let swarm = client.inspect_swarm().await.expect("a swarm");
    assert!(swarm.join_tokens.expect("tokens").worker.expect("one").starts_with("SWMTKN-1-"));
    let images = client.list_images(None::<ListImagesOptions>).await.expect("images");
    assert_eq!(images[0].repo_tags, ["whoami:v1"]);
    client.df(None).await.expect("disk use");
}

async fn nodes(client: &Docker) {
    let managers = ListNodesOptionsBuilder::default().filters(&filters(&[("role", "manager")])).build();
    let managers = client.list_nodes(Some(managers)).await.expect("nodes");
    assert_eq!(managers.len(), 1);
    assert_eq!(managers[0].id, Some(MANAGER.to_string()));
    assert_eq!(managers[0].manager_status.as_ref().and_then(|status| status.leader), Some(true));

    let worker = client.inspect_node(&WORKER_1.to_string()).await.expect("a node");
    let version = worker.version.and_then(|version| version.index).expect("a version");
    let labels = HashMap::from([("rack".to_owned(), "a7".to_owned())]);
    let spec = NodeSpec { labels: Some(labels), ..worker.spec.expect("a spec") };
    let options = UpdateNodeOptionsBuilder::new().version(i64::try_from(version).expect("small")).build();
    client.update_node(&WORKER_1.to_string(), spec, options).await.expect("updated");
    let worker = client.inspect_node("w1").await.expect("by its name").spec.expect("a spec");
    assert_eq!(worker.labels.expect("labels")["rack"], "a7");
    assert_eq!(worker.availability, Some(NodeSpecAvailabilityEnum::ACTIVE));
    let (status, text) = refusal(client.inspect_node("nothing").await);
    assert_eq!((status, text.as_str()), (404, "node nothing not found"));
}

async fn network(client: &Docker) -> String {
    let subnet = IpamConfig { subnet: Some("10.77.0.0/24".into()), ..IpamConfig::default() };
    let request = NetworkCreateRequest {
        name: "app".into(),
        driver: Some("overlay".into()),
        ipam: Some(Ipam { config: Some(vec![subnet]), ..Ipam::default() }),
        labels: Some(HashMap::from([("tier".to_owned(), "front".to_owned())])),
        ..NetworkCreateRequest::default()
    };
    let id = client.create_network(request.clone()).await.expect("created").id;
    let shown = client.inspect_network("app", None).await.expect("a network");
    assert_eq!((shown.id.as_ref(), shown.scope.as_deref()), (Some(&id), Some("swarm")));
    assert_eq!(client.list_networks(None).await.expect("networks").len(), 3);
    let (status, text) = refusal(client.create_network(request).await);
    assert_eq!((status, text.as_str()), (409, "network with name app already exists"));
    id
}

async fn secret_and_config(client: &Docker) -> String {
    let secret =
        SecretSpec { name: Some("key".into()), data: Some("b3Blbg==".into()), ..SecretSpec::default() };
    let secret = client.create_secret(secret).await.expect("created").id;
    let shown = client.inspect_secret("key").await.expect("a secret");
    assert_eq!((shown.id.as_ref(), shown.spec.and_then(|spec| spec.data)), (Some(&secret), None));
    let config =
        ConfigSpec { name: Some("motd".into()), data: Some("aGVsbG8=".into()), ..ConfigSpec::default() };
    client.create_config(config).await.expect("created");
    let shown = client.inspect_config("motd").await.expect("a config").spec.expect("a spec");
    assert_eq!(shown.data.as_deref(), Some("aGVsbG8="));
    assert_eq!(client.list_secrets(None).await.expect("secrets").len(), 1);
    assert_eq!(client.list_configs(None).await.expect("configs").len(), 1);
    secret
}

fn web(network: &str, secret: &str) -> ServiceSpec {
    let file = TaskSpecContainerSpecFile {
        name: Some("key".into()),
        uid: Some("0".into()),
        gid: Some("0".into()),
        mode: Some(0o400),
    };
    let secret = TaskSpecContainerSpecSecrets {
        file: Some(file),
        secret_id: Some(secret.into()),
        secret_name: Some("key".into()),
    };
    let container = TaskSpecContainerSpec {
        image: Some("whoami:v1".into()),
        env: Some(words(&["A=1"])),
        secrets: Some(vec![secret]),
        // It says so in another case than Docker's own client.
        health_check: Some(HealthConfig {
            test: Some(words(&["CMD", "true"])),
            retries: Some(2),
            ..HealthConfig::default()
        }),
        ..TaskSpecContainerSpec::default()
    };
    let attached =
        NetworkAttachmentConfig { target: Some(network.into()), ..NetworkAttachmentConfig::default() };
    let port = EndpointPortConfig {
        protocol: Some(EndpointPortConfigProtocolEnum::TCP),
        target_port: Some(80),
        published_port: Some(8080),
        ..EndpointPortConfig::default()
    };
    ServiceSpec {
        name: Some("web".into()),
        labels: Some(HashMap::from([("team".to_owned(), "blue".to_owned())])),
        task_template: Some(TaskSpec {
            container_spec: Some(container),
            networks: Some(vec![attached]),
            placement: Some(TaskSpecPlacement {
                constraints: Some(words(&["node.hostname!=w2"])),
                ..TaskSpecPlacement::default()
            }),
            ..TaskSpec::default()
        }),
        mode: Some(replicated(2)),
        update_config: Some(ServiceSpecUpdateConfig {
            monitor: Some(MONITOR_NS),
            ..ServiceSpecUpdateConfig::default()
        }),
        rollback_config: Some(ServiceSpecRollbackConfig {
            monitor: Some(MONITOR_NS),
            ..ServiceSpecRollbackConfig::default()
        }),
        endpoint_spec: Some(EndpointSpec { ports: Some(vec![port]), ..EndpointSpec::default() }),
        ..ServiceSpec::default()
    }
}

fn replicated(replicas: i64) -> ServiceSpecMode {
    ServiceSpecMode {
        replicated: Some(ServiceSpecModeReplicated { replicas: Some(replicas) }),
        ..ServiceSpecMode::default()
    }
}

async fn inspected(client: &Docker, daemon: &Daemon, id: &str, network: &str) {
    let shown = client.inspect_service("web", None).await.expect("a service");
    assert_eq!(shown.id.as_deref(), Some(id));
    let endpoint = shown.endpoint.expect("an endpoint");
    let vips = endpoint.virtual_ips.expect("addresses");
    let own = vips.iter().find(|vip| vip.network_id.as_deref() == Some(network)).expect("one");
    assert_eq!(own.addr.as_deref(), Some("10.77.0.2/24"));
    assert_eq!(endpoint.ports.expect("ports")[0].published_port, Some(8080));
    let state = daemon.store.state();
    let health = &state.service_by_name("web").expect("made").spec.task.container.health;
    assert_eq!(health.as_ref().expect("a check").retries, 2);

    let blue = filters(&[("label", "team=blue"), ("mode", "replicated")]);
    let options = ListServicesOptionsBuilder::default().filters(&blue).status(true).build();
    let listed = client.list_services(Some(options)).await.expect("services");
    let status = listed[0].service_status.as_ref().expect("counts");
    assert_eq!((listed.len(), status.running_tasks, status.desired_tasks), (1, Some(2), Some(2)));
    let (status, text) = refusal(client.inspect_service("nothing", None).await);
    assert_eq!((status, text.as_str()), (404, "service nothing not found"));
}

async fn tasks(client: &Docker, id: &str) {
    let running = filters(&[("service", "web"), ("desired-state", "running")]);
    let options = ListTasksOptionsBuilder::default().filters(&running).build();
    let mut tasks = client.list_tasks(Some(options)).await.expect("tasks");
    tasks.sort_by_key(|task| task.slot);
    assert_eq!(tasks.iter().map(|task| task.slot).collect::<Vec<_>>(), [Some(1), Some(2)]);
    let task: Task = client.inspect_task(tasks[0].id.as_ref().expect("an id")).await.expect("a task");
    assert_eq!((task.service_id.as_deref(), task.desired_state), (Some(id), Some(TaskState::RUNNING)));
    let status = task.status.expect("a status");
    assert_eq!(status.container_status.expect("a container").container_id.expect("an id").len(), 64);
}

async fn logs_and_containers(client: &Docker, id: &str) {
    let both = LogsOptionsBuilder::default().stdout(true).stderr(true).build();
    let lines: Vec<_> = client.service_logs("web", Some(both.clone())).try_collect().await.expect("lines");
    let lines: Vec<_> = lines.iter().map(ToString::to_string).collect();
    for slot in [1, 2] {
        for word in ["begins", "complains"] {
            let is_it =
                |line: &&String| line.starts_with(&format!("web.{slot}.")) && line.trim_end().ends_with(word);
            assert_eq!(lines.iter().filter(is_it).count(), 1, "{lines:?}");
        }
    }
    let label = format!("com.docker.swarm.service.id={id}");
    let options = ListContainersOptionsBuilder::default().filters(&filters(&[("label", &label)])).build();
    let containers = client.list_containers(Some(options)).await.expect("containers");
    assert_eq!(containers.len(), 2);
    let name = containers[0].names.as_ref().expect("names")[0].trim_start_matches('/').to_owned();
    let shown = client.inspect_container(&name, None).await.expect("a container");
    assert_eq!(shown.state.and_then(|state| state.running), Some(true));
    let lines: Vec<_> = client.logs(&name, Some(both)).try_collect().await.expect("lines");
    assert_eq!(lines.len(), 2, "{lines:?}");
    echoes(client, &name).await;
}

async fn echoes(client: &Docker, container: &str) {
    let config = CreateExecOptions {
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        cmd: Some(words(&["cat"])),
        ..CreateExecOptions::default()
    };
    let exec = client.create_exec(container, config).await.expect("made").id;
    let started = client.start_exec(&exec, None::<StartExecOptions>).await.expect("started");
    let StartExecResults::Attached { mut output, mut input } = started else { panic!("it is attached") };
    input.write_all(b"there and back\n").await.expect("taken");
    let line = output.try_next().await.expect("a connection").expect("a line");
    assert_eq!(line.to_string(), "there and back\n");
    input.shutdown().await.expect("taken");
    assert!(output.try_next().await.expect("a connection").is_none(), "it has ended");
    let shown = client.inspect_exec(&exec).await.expect("known");
    assert_eq!((shown.running, shown.exit_code), (Some(false), Some(0)));
}

async fn updated(client: &Docker, daemon: &Daemon, id: &str) {
    let version = |service: &Service| {
        let index = service.version.as_ref().and_then(|version| version.index).expect("a version");
        i32::try_from(index).expect("small")
    };
    let shown = client.inspect_service("web", None).await.expect("a service");
    let before = version(&shown);
    // What was shown is what is taken.
    let mut spec = shown.spec.expect("a spec");
    spec.mode = Some(replicated(1));
    spec.task_template.as_mut().and_then(|task| task.container_spec.as_mut()).expect("a container").env =
        Some(words(&["A=2"]));
    let options = UpdateServiceOptionsBuilder::new().version(before).build();
    client.update_service("web", spec.clone(), options.clone(), None).await.expect("updated");
    daemon.running("web", 1).await;
    let shown = client.inspect_service(id, None).await.expect("a service");
    let state = shown.update_status.as_ref().and_then(|status| status.state);
    assert_eq!(state, Some(ServiceUpdateStatusStateEnum::COMPLETED));
    assert!(version(&shown) > before);
    let (status, text) = refusal(client.update_service("web", spec.clone(), options, None).await);
    assert_eq!((status, text.contains("update out of sequence")), (500, true), "{text}");
    let options = UpdateServiceOptionsBuilder::new().version(version(&shown)).rollback("previous").build();
    client.update_service("web", spec, options, None).await.expect("rolled back");
    daemon.running("web", 2).await;
}

async fn jobs_and_volumes(client: &Docker, daemon: &Daemon) {
    let job = ServiceSpecModeReplicatedJob { max_concurrent: Some(1), total_completions: Some(2) };
    let container =
        TaskSpecContainerSpec { image: Some("whoami:v1".into()), ..TaskSpecContainerSpec::default() };
    let spec = ServiceSpec {
        name: Some("job".into()),
        task_template: Some(TaskSpec { container_spec: Some(container), ..TaskSpec::default() }),
        mode: Some(ServiceSpecMode { replicated_job: Some(job), ..ServiceSpecMode::default() }),
        ..ServiceSpec::default()
    };
    client.create_service(spec, None).await.expect("created");
    daemon
        .until(|state| {
            let job = state.service_by_name("job").expect("made").id;
            let done = |task: &&std::sync::Arc<control_model::Task>| {
                task.status.state == control_model::TaskState::Complete
            };
            state.tasks_of_service(job).filter(done).count() == 2
        })
        .await;
    client.delete_service("job").await.expect("removed");
    let volume = VolumeCreateRequest { name: Some("store".into()), ..VolumeCreateRequest::default() };
    assert_eq!(client.create_volume(volume).await.expect("created").name, "store");
    assert_eq!(
        client
            .list_volumes(None::<ListVolumesOptions>)
            .await
            .expect("volumes")
            .volumes
            .expect("a list")
            .len(),
        1
    );
    client.remove_volume("store", None::<RemoveVolumeOptions>).await.expect("removed");
}

/// All that happened to the service, and nothing else.
async fn events(client: &Docker, id: &str) {
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let options = EventsOptionsBuilder::default()
        .since("1")
        .until(&(now + 1).to_string())
        .filters(&filters(&[("type", "service"), ("service", id)]))
        .build();
    let told: Vec<_> = client.events(Some(options)).try_collect().await.expect("events");
    let actions: Vec<_> = told.iter().filter_map(|event| event.action.as_deref()).collect();
    assert_eq!(actions.first(), Some(&"create"), "{actions:?}");
    assert_eq!(actions.last(), Some(&"remove"), "{actions:?}");
    assert!(actions.contains(&"update"), "{actions:?}");
}
