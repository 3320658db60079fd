//! The requests of programs that are too large to be run in a test, as they send them, and what they read of the replies:
//! Traefik's swarm provider, Portainer without its agent, the swarm visualizer, and newer Prometheus.

use serde_json::{Value, from_str};

use crate::common::Daemon;
use crate::manager_with_containers;

/// A published service of two replicas in a network, and its neighbour by DNS alone.
async fn cluster(daemon: &Daemon) {
    daemon.prints("network create -d overlay --subnet 10.77.0.0/24 app").await;
    for flags in [
        "--name web --replicas 2 --env A=1 --network app -p 8080:80 --label traefik.enable=true --label com.docker.stack.namespace=shop \
         --container-label kind=site --mount type=volume,source=store,target=/data",
        "--name direct --endpoint-mode dnsrr --network app",
    ] {
        let line =
            format!("service create -d --no-resolve-image --constraint node.hostname!=w2 {flags} whoami:v1");
        daemon.prints(&line).await;
    }
    daemon.running("web", 2).await;
    daemon.running("direct", 1).await;
}

/// The reply in JSON; it must be a good one.
async fn get(daemon: &Daemon, path: &str) -> Value {
    let (status, text) = daemon.request_of("GET", path, None, b"").await;
    assert_eq!(status, 200, "{path}: {text}");
    from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
}

/// The same with these filters.
async fn filtered(daemon: &Daemon, path: &str, filters: &str) -> Value {
    let mark = if path.contains('?') { '&' } else { '?' };
    let encoded = filters.replace('{', "%7B").replace('}', "%7D").replace('"', "%22");
    get(daemon, &format!("{path}{mark}filters={encoded}")).await
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

fn named<'a>(all: &'a Value, name: &str) -> &'a Value {
    list(all).iter().find(|one| one["Spec"]["Name"] == name || one["Name"] == name).expect("it is listed")
}

/// The oldest version that it has asked for, and the newest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traefik_finds_routes() {
    let (daemon, _containers) = manager_with_containers().await;
    cluster(&daemon).await;
    for version in ["/v1.24", "/v1.50"] {
        let path = |path: &str| format!("{version}{path}");
        assert_eq!(daemon.header("HEAD", "/_ping", "Api-Version").await, "1.50");
        assert_eq!(get(&daemon, &path("/version")).await["ApiVersion"], "1.50");
        let networks = filtered(&daemon, &path("/networks"), r#"{"scope":{"swarm":true}}"#).await;
        let app = text(&named(&networks, "app")["Id"]).to_owned();
        assert!(list(&networks).iter().all(|network| network["Scope"] == "swarm"), "{networks}");

        let services = get(&daemon, &path("/services")).await;
        let web = named(&services, "web");
        assert_eq!(web["Spec"]["Labels"]["traefik.enable"], "true");
        assert_eq!(
            (&web["Spec"]["EndpointSpec"]["Mode"], &web["Spec"]["Mode"]["Global"]),
            (&"vip".into(), &Value::Null)
        );
        let addresses: Vec<_> = list(&web["Endpoint"]["VirtualIPs"])
            .iter()
            .map(|vip| (text(&vip["NetworkID"]), text(&vip["Addr"])))
            .collect();
        assert!(addresses.contains(&(app.as_str(), "10.77.0.2/24")), "{addresses:?}");
        assert_eq!(named(&services, "direct")["Spec"]["EndpointSpec"]["Mode"], "dnsrr");

        let of_web =
            format!(r#"{{"desired-state":{{"running":true}},"service":{{"{}":true}}}}"#, text(&web["ID"]));
        let tasks = filtered(&daemon, &path("/tasks"), &of_web).await;
        assert_eq!(list(&tasks).len(), 2, "{tasks}");
        for task in list(&tasks) {
            assert_eq!((&task["Status"]["State"], &task["ServiceID"]), (&"running".into(), &web["ID"]));
            assert!(number(&task["Slot"]) > 0);
            let own = list(&task["NetworksAttachments"]).iter().find(|own| own["Network"]["ID"] == *app);
            assert!(text(&own.expect("attached")["Addresses"][0]).starts_with("10.77.0."), "{task}");
            let node = get(&daemon, &path(&format!("/nodes/{}", text(&task["NodeID"])))).await;
            assert!(text(&node["Status"]["Addr"]).starts_with("198.18.0."), "{node}");
        }
    }
}

/// Without a version before the path. It skips tasks that are not wanted, and needs the container of those that are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_visualizer_shows_nodes_and_tasks() {
    let (daemon, _containers) = manager_with_containers().await;
    cluster(&daemon).await;
    let nodes = get(&daemon, "/nodes").await;
    let shown: Vec<_> = list(&nodes)
        .iter()
        .map(|node| {
            let description = &node["Description"];
            let platform = &description["Platform"];
            assert!(node["Spec"]["Labels"].is_object(), "{node}");
            assert_eq!((text(&platform["Architecture"]), text(&platform["OS"])), ("x86_64", "linux"));
            (
                text(&description["Hostname"]),
                text(&node["Spec"]["Role"]),
                text(&node["Status"]["State"]),
                number(&description["Resources"]["MemoryBytes"]),
            )
        })
        .collect();
    let memory = 2 << 30;
    assert_eq!(
        shown,
        [
            ("m1", "manager", "ready", memory),
            ("w1", "worker", "ready", memory),
            ("w2", "worker", "ready", memory)
        ]
    );
    let (services, tasks) = (get(&daemon, "/services").await, get(&daemon, "/tasks").await);
    let wanted: Vec<_> = list(&tasks).iter().filter(|task| task["DesiredState"] == "running").collect();
    assert_eq!(wanted.len(), 3);
    for task in wanted {
        assert!(list(&services).iter().any(|service| service["ID"] == task["ServiceID"]), "{task}");
        assert!(list(&nodes).iter().any(|node| node["ID"] == task["NodeID"]), "{task}");
        assert_eq!(text(&task["Spec"]["ContainerSpec"]["Image"]), "whoami:v1");
        assert!(text(&task["UpdatedAt"]).ends_with('Z'), "{task}");
        let container = text(&task["Status"]["ContainerStatus"]["ContainerID"]);
        assert_eq!(container.len(), 64);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn portainer_has_its_pages() {
    let (daemon, _containers) = manager_with_containers().await;
    cluster(&daemon).await;
    assert_eq!(daemon.request_of("GET", "/_ping", None, b"").await, (200, "OK".to_owned()));
    let info = get(&daemon, "/info").await;
    let swarm = &info["Swarm"];
    assert_eq!((&swarm["ControlAvailable"], number(&swarm["Nodes"])), (&true.into(), 3));
    assert_eq!((text(&swarm["NodeID"]).len(), number(&info["Images"])), (25, 1));
    assert!(number(&info["NCPU"]) > 0 && number(&info["MemTotal"]) > 0, "{info}");
    assert_eq!(list(&info["Plugins"]["Volume"]), ["local"]);
    let version = get(&daemon, "/version").await;
    assert!(list(&version["Components"]).iter().all(|part| !text(&part["Name"]).is_empty()), "{version}");
    assert_eq!(get(&daemon, "/swarm").await["ID"].as_str().map(str::len), Some(25));

    for node in list(&get(&daemon, "/nodes").await) {
        assert_eq!(number(&node["Description"]["Resources"]["NanoCPUs"]), 2_000_000_000);
        assert!(!list(&node["Description"]["Engine"]["Plugins"]).is_empty());
    }
    let services = get(&daemon, "/services?status=true").await;
    let web = named(&services, "web");
    assert_eq!(web["Spec"]["Labels"]["com.docker.stack.namespace"], "shop");
    assert!(number(&web["Version"]["Index"]) > 0 && number(&web["ServiceStatus"]["DesiredTasks"]) == 2);
    assert_eq!(number(&web["Spec"]["Mode"]["Replicated"]["Replicas"]), 2);
    let of_web = format!(r#"{{"service":["{}"]}}"#, text(&web["ID"]));
    assert_eq!(list(&filtered(&daemon, "/tasks", &of_web).await).len(), 2);

    containers(&daemon).await;
    for path in ["/images/json?all=0", "/networks", "/secrets", "/configs", "/plugins"] {
        let reply = get(&daemon, path).await;
        assert!(reply.is_array(), "{path}: {reply}");
    }
    let unused = filtered(&daemon, "/volumes", r#"{"dangling":["true"]}"#).await;
    assert_eq!(unused["Volumes"], Value::Array(Vec::new()));
    let disk = get(&daemon, "/system/df").await;
    assert!(
        disk["Images"].is_array() && disk["Containers"].is_array() && disk["Volumes"].is_array(),
        "{disk}"
    );
    let (status, events) = daemon.request_of("GET", "/events?since=1&until=2", None, b"").await;
    assert_eq!((status, events.as_str()), (200, ""));
}

/// The list, by what it belongs to, and one of it.
async fn containers(daemon: &Daemon) {
    let all = get(daemon, "/containers/json?all=1").await;
    assert_eq!(list(&all).len(), 3);
    let network = text(&get(daemon, "/networks/app").await["Id"]).to_owned();
    for (filters, expected) in [
        (format!(r#"{{"network":["{network}"]}}"#), 3),
        (r#"{"network":["app"]}"#.to_owned(), 3),
        (r#"{"network":["ingress"]}"#.to_owned(), 2),
        (r#"{"network":["nowhere"]}"#.to_owned(), 0),
        (r#"{"volume":["store"]}"#.to_owned(), 2),
        (r#"{"volume":["/data"]}"#.to_owned(), 2),
        (r#"{"volume":["other"]}"#.to_owned(), 0),
        (r#"{"ancestor":["whoami:v1"]}"#.to_owned(), 3),
        (r#"{"ancestor":["nothing"]}"#.to_owned(), 0),
        (r#"{"status":["running"],"is-task":["true"]}"#.to_owned(), 3),
        (r#"{"is-task":["false"]}"#.to_owned(), 0),
        (r#"{"exited":["0"]}"#.to_owned(), 0),
    ] {
        let found = filtered(daemon, "/containers/json?all=1", &filters).await;
        assert_eq!(list(&found).len(), expected, "{filters}: {found}");
    }
    for one in list(&all) {
        assert_eq!(one["State"], "running");
        assert!(text(&one["Status"]).starts_with("Up ") && text(&one["Names"][0]).starts_with('/'), "{one}");
        assert!(
            text(&one["NetworkSettings"]["Networks"]["app"]["IPAddress"]).starts_with("10.77.0."),
            "{one}"
        );
        let shown = get(daemon, &format!("/containers/{}/json", text(&one["Id"]))).await;
        assert_eq!(shown["State"]["Running"], true);
        let of_web = text(&one["Names"][0]).starts_with("/web.");
        assert_eq!(list(&shown["Config"]["Env"]).first(), of_web.then_some(&Value::from("A=1")), "{shown}");
        assert!(shown["Config"]["Labels"].is_object() && shown["HostConfig"].is_object(), "{shown}");
        assert!(shown["Mounts"].is_array() && shown["Args"].is_array(), "{shown}");
    }
    let bad = "/containers/json?filters=%7B%22since%22%3A%5B%22nothing%22%5D%7D";
    assert_eq!(daemon.error("GET", bad, "").await, (404, "No such container: nothing".to_owned()));
}
