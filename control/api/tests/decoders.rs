//! Bytes from outside never bring the daemon down: every decoder of the API, with noise and with almost-JSON.

mod common;

use common::Daemon;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value;

/// Requests with a body, and one without for each kind of query.
const PATHS: &[(&str, &str)] = &[
    ("POST", "/services/create"),
    ("POST", "/containers/create"),
    ("POST", "/services/web/update?version=1"),
    ("POST", "/networks/create"),
    ("POST", "/nodes/m1/update?version=1"),
    ("POST", "/swarm/update?version=1"),
    ("POST", "/swarm/init"),
    ("POST", "/swarm/join"),
];

/// Keys that the decoders know, so that noise gets past the first level.
const KEYS: &[&str] = &[
    "Name",
    "Labels",
    "TaskTemplate",
    "HostConfig",
    "Binds",
    "PortBindings",
    "80/tcp",
    "HostPort",
    "ConsoleSize",
    "Entrypoint",
    "Tmpfs",
    "ContainerSpec",
    "Image",
    "Env",
    "Mounts",
    "Resources",
    "Limits",
    "NanoCPUs",
    "Placement",
    "Constraints",
    "Preferences",
    "Networks",
    "Target",
    "Mode",
    "Replicated",
    "Replicas",
    "UpdateConfig",
    "Parallelism",
    "Delay",
    "MaxFailureRatio",
    "EndpointSpec",
    "Ports",
    "TargetPort",
    "PublishedPort",
    "Protocol",
    "Driver",
    "IPAM",
    "Config",
    "Subnet",
    "IPRange",
    "Gateway",
    "Options",
    "Role",
    "Availability",
    "Orchestration",
    "Raft",
    "CAConfig",
    "DefaultAddrPool",
    "SubnetSize",
    "RemoteAddrs",
    "JoinToken",
    "Spec",
    "DNSConfig",
    "Nameservers",
    "StopGracePeriod",
    "RestartPolicy",
    "Condition",
    "Ulimits",
    "TmpfsOptions",
    "SizeBytes",
];

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop_oneof![
            Just("overlay"),
            Just("10.0.0.0/8"),
            Just("::/0"),
            Just("manager"),
            Just("vip"),
            Just("a")
        ]
        .prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 48, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(prop::sample::select(KEYS).prop_map(str::to_owned), inner, 0..6)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_bytes_bring_the_daemon_down() {
    let daemon = Daemon::alone().await;
    let manager = Daemon::manager().await;
    let mut runner = TestRunner::new(Config::default());
    for round in 0..200 {
        for (method, path) in PATHS {
            let body = match round % 4 {
                0 => any::<Vec<u8>>().new_tree(&mut runner).expect("bytes").current(),
                _ => json().new_tree(&mut runner).expect("JSON").current().to_string().into_bytes(),
            };
            let served =
                if path.starts_with("/swarm/") && !path.contains("update") { &daemon } else { &manager };
            let (status, reply) = served.request(method, path, &body).await;
            assert!((200..=599).contains(&status), "{path} {body:?}: {reply}");
            assert!(!reply.contains("panicked"), "{path} {body:?}: {reply}");
        }
    }
    for path in ["/nodes", "/services", "/tasks", "/networks", "/images/json", "/containers/json"] {
        for _ in 0..20 {
            let filters = json().new_tree(&mut runner).expect("JSON").current().to_string();
            let query: Vec<_> = filters.bytes().map(|byte| format!("%{byte:02X}")).collect();
            let query = query.concat();
            let (status, reply) = manager.request("GET", &format!("{path}?filters={query}"), b"").await;
            assert!(matches!(status, 200 | 400), "{path} {filters}: {status} {reply}");
        }
    }
    // Both still answer.
    assert_eq!(daemon.request("GET", "/_ping", b"").await.0, 200);
    assert_eq!(manager.request("GET", "/nodes", b"").await.0, 200);
}
