//! Bad input: Docker's text and status, and no state changed.

mod common;
#[path = "refusals/modes.rs"]
mod modes;

use std::sync::Arc;

use common::Daemon;
use common::node::FakeNode;
use control_store::{ReplicatedStore, State};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const NOT_A_MANAGER: &str = "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster \
                             state. Please run this command on a manager node or promote the current node to a \
                             manager.";
const NOT_IN_A_SWARM: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" \
                              to connect this node to swarm and try again.";

/// A body for `/services/create`.
fn service(name: &str, more: &str) -> String {
    format!(r#"{{"Name":"{name}","TaskTemplate":{{"ContainerSpec":{{"Image":"whoami:v1"}}}}{more}}}"#)
}

/// A manager with a network and a service, both settled.
async fn settled() -> Daemon {
    let daemon = Daemon::manager().await;
    daemon
        .prints("network create -d overlay --ipv6 --subnet 10.77.0.0/24 --subnet 2001:db8:77::/64 app")
        .await;
    daemon
        .prints("service create -d --no-resolve-image --name web --network app --publish 8080:80 whoami:v1")
        .await;
    daemon.running("web", 1).await;
    daemon
}

fn bytes(state: &Arc<State>) -> Vec<u8> {
    state.to_snapshot()
}

/// Has the leader written all that a new cluster gets by itself?
fn is_settled(state: &State) -> bool {
    let has_keys = state.cluster().is_some_and(|cluster| !cluster.gossip_keys.keys.is_empty());
    has_keys && state.ingress_network().is_some_and(|network| network.state.is_some())
}

/// A request's body, and the status and text that it gets.
type Case = (String, (u16, String));

fn invalid(text: &str) -> (u16, String) {
    (400, format!("rpc error: code = InvalidArgument desc = {text}"))
}

fn unsupported(what: &str) -> (u16, String) {
    (501, format!("{what} is not supported by this daemon"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn specs_that_can_not_be_are_refused() {
    let daemon = settled().await;
    let before = bytes(&daemon.store.state());
    let mut cases: Vec<Case> = vec![
        (service("web", ""), (409, "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service web already exists".into())),
        (service("a.b", ""), invalid("name must be valid as a DNS name component")),
        (service(&"a".repeat(64), ""), invalid("name must be 63 characters or fewer")),
        (
            service("b", r#","EndpointSpec":{"Mode":"dnsrr","Ports":[{"TargetPort":80,"PublishedPort":81}]}"#),
            invalid("EndpointSpec: port published with ingress mode can't be used with dnsrr mode"),
        ),
        (service("b", r#","Labels":{"mesh.dsr":"yes"}"#), invalid("label mesh.dsr: \"yes\" is neither true nor false")),
        (service("b", r#","Labels":{"mesh.slow-start":"30"}"#), invalid("label mesh.slow-start: \"30\" is no time between 1s and 1h (like 30s or 1m30s)")),
        (service("b", r#","Labels":{"mesh.rebalance":"0"}"#), invalid("label mesh.rebalance: \"0\" is neither a number of tasks (like 1) nor a share of them (like 10%)")),
        (service("b", r#","EndpointSpec":{"Mode":"magic"}"#), (400, "invalid resolution mode: \"magic\"".into())),
        (service("b", r#","EndpointSpec":{"Ports":[{"TargetPort":80,"PublishedPort":65536}]}"#), (400, "invalid port 65536: at most 65535".into())),
        (service("b", r#","EndpointSpec":{"Ports":[{"TargetPort":80,"PublishMode":"host"}]}"#), unsupported("a port of mode host without a number (published=…)")),
        (service("b", r#","UpdateConfig":{"FailureAction":"panic"}"#), (400, "unrecognized update failure action panic".into())),
        (service("b", r#","UpdateConfig":{"MaxFailureRatio":2}"#), invalid("TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1")),
        (service("b", r#","UpdateConfig":{"Delay":-1}"#), invalid("TaskSpec: update-delay cannot be negative")),
        (r#"{"Name":"b","TaskTemplate":{"ContainerSpec":{"Image":""}}}"#.into(), invalid("ContainerSpec: image reference must be provided")),
        (r#"{"Name":"b","TaskTemplate":{"ContainerSpec":{"Image":"A b"}}}"#.into(), invalid("ContainerSpec: \"A b\" is not a valid repository/tag")),
        (r#"{"Name":"b"}"#.into(), (400, "mismatched Runtime and *Spec fields".into())),
        (
            r#"{"Name":"b","TaskTemplate":{"ContainerSpec":{"Image":"a"},"Placement":{"Constraints":["node.role"]}}}"#.into(),
            (500, "rpc error: code = Unknown desc = constraint expected one operator from ==, !=".into()),
        ),
        (
            r#"{"Name":"b","TaskTemplate":{"ContainerSpec":{"Image":"a"},"Resources":{"Limits":{"NanoCPUs":1000}}}}"#.into(),
            invalid("invalid cpu value 0.000001: Must be at least 0.001"),
        ),
        (
            r#"{"Name":"b","TaskTemplate":{"ContainerSpec":{"Image":"a","Secrets":[{"SecretName":"s"}]}}}"#.into(),
            (400, "malformed secret reference".into()),
        ),
        (
            r#"{"Name":"b","TaskTemplate":{"ContainerSpec":{"Image":"a"},"LogDriver":{"Name":"fluentd"}}}"#.into(),
            invalid("logger: no log driver named 'fluentd' is registered"),
        ),
        (
            r#"{"Name":"b","TaskTemplate":{"ContainerSpec":{"Image":"a"},"Networks":[{"Target":"nowhere"}]}}"#.into(),
            (404, "network nowhere not found".into()),
        ),
        (
            r#"{"Name":"b","TaskTemplate":{"ContainerSpec":{"Image":"a"},"Networks":[{"Target":"ingress"}]}}"#.into(),
            invalid("Service cannot be explicitly attached to the ingress network \"ingress\""),
        ),
        (
            r#"{"Name":"b","TaskTemplate":{"ContainerSpec":{"Image":"a"},"Networks":[{"Target":"host"}]}}"#.into(),
            (501, "the predefined network host is not supported by this daemon".into()),
        ),
        (
            r#"{"Name":"b","TaskTemplate":{"ContainerSpec":{"Image":"a"},"Networks":[{"Target":"bridge"}]}}"#.into(),
            (403, "The network bridge cannot be used with services. Only networks scoped to the swarm can be used, such as those created with the overlay driver.".into()),
        ),
    ];
    cases.extend(modes::modes_and_resources());
    for (body, expected) in cases {
        assert_eq!(daemon.error("POST", "/v1.44/services/create", &body).await, expected, "{body}");
    }
    assert!(bytes(&daemon.store.state()) == before, "a refused request changed the state");
}

/// Ports of another service, and of the swarm itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_that_are_taken_are_refused() {
    let daemon = settled().await;
    let web = daemon.store.state().service_by_name("web").expect("web").id;
    let cases = [
        (
            r#""PublishedPort":8080"#,
            format!("8080' is already in use by service 'web' ({web}) as an ingress port"),
        ),
        (
            r#""PublishedPort":2377"#,
            "2377' is already in use by the swarm's managers, which the nodes reach there".into(),
        ),
        (
            r#""PublishedPort":2377,"PublishMode":"host""#,
            "2377' is already in use by the swarm's managers, which the nodes reach there".into(),
        ),
        (
            r#""PublishedPort":4789,"Protocol":"udp""#,
            "4789' is already in use by the swarm's data path, see --data-path-port".into(),
        ),
    ];
    for (port, expected) in cases {
        let body = service("b", &format!(r#","EndpointSpec":{{"Ports":[{{"TargetPort":80,{port}}}]}}"#));
        let expected = format!("rpc error: code = InvalidArgument desc = port '{expected}");
        assert_eq!(daemon.error("POST", "/v1.44/services/create", &body).await, (400, expected), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_out_of_turn_are_refused() {
    let daemon = settled().await;
    let before = bytes(&daemon.store.state());
    let state = daemon.store.state();
    let web = state.service_by_name("web").expect("web").clone();
    let version = web.meta.spec_version;
    let sequence = (500, "rpc error: code = Unknown desc = update out of sequence".to_owned());
    let update = |version: u64| format!("/services/web/update?version={version}");
    let renamed = service("other", "");
    let global = service("web", r#","Mode":{"Global":{}}"#);
    let worker = r#"{"Role":"worker","Availability":"active"}"#;
    let node_version = state.nodes().iter().next().expect("a node").meta.spec_version;
    let cases = [
        ("POST", update(version + 1), service("web", ""), sequence.clone()),
        ("POST", update(version), renamed, (501, "rpc error: code = Unimplemented desc = renaming services is not supported".into())),
        ("POST", update(version), global, (501, "rpc error: code = Unimplemented desc = service mode change is not allowed".into())),
        (
            "POST",
            format!("{}&rollback=previous", update(version)),
            service("web", ""),
            (400, format!("rpc error: code = FailedPrecondition desc = service {} does not have a previous spec", web.id)),
        ),
        ("POST", format!("{}&rollback=sideways", update(version)), service("web", ""), (400, "unrecognized rollback option sideways".into())),
        (
            "POST",
            "/services/web/update".into(),
            service("web", ""),
            (400, "invalid service version '': strconv.ParseUint: parsing \"\": invalid syntax".into()),
        ),
        ("POST", "/services/none/update?version=1".into(), service("none", ""), (404, "service none not found".into())),
        ("GET", "/services/none".into(), String::new(), (404, "service none not found".into())),
        ("DELETE", "/services/none".into(), String::new(), (404, "service none not found".into())),
        ("GET", "/tasks/none".into(), String::new(), (404, "task none not found".into())),
        ("GET", "/nodes/none".into(), String::new(), (404, "node none not found".into())),
        ("POST", "/nodes/w1/update?version=999".into(), worker.into(), sequence.clone()),
        ("POST", format!("/nodes/m1/update?version={node_version}"), worker.into(), (400, "rpc error: code = FailedPrecondition desc = attempting to demote the last manager of the swarm".into())),
        ("POST", "/nodes/m1/update?version=1".into(), r#"{"Role":"king","Availability":"active"}"#.into(), (400, "invalid Role: \"king\"".into())),
        ("DELETE", "/nodes/w1".into(), String::new(), (400, format!("rpc error: code = FailedPrecondition desc = node {} is not down and can't be removed", common::world::WORKER_1))),
        (
            "DELETE",
            "/nodes/m1?force=1".into(),
            String::new(),
            (
                400,
                format!(
                    "rpc error: code = FailedPrecondition desc = node {} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal",
                    common::world::MANAGER
                ),
            ),
        ),
        ("POST", "/swarm/update?version=999".into(), r#"{"Name":"default"}"#.into(), sequence.clone()),
        ("POST", "/swarm/update?version=1".into(), r#"{"Name":"mine"}"#.into(), (400, "swarm spec must be named \"default\"".into())),
        ("POST", "/swarm/init".into(), "{}".into(), (503, "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one.".into())),
        ("POST", "/swarm/join".into(), "{}".into(), (503, "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one.".into())),
    ];
    for (method, path, body, expected) in cases {
        assert_eq!(daemon.error(method, &path, &body).await, expected, "{method} {path} {body}");
    }
    assert!(bytes(&daemon.store.state()) == before, "a refused request changed the state");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn networks_that_can_not_be_are_refused() {
    let daemon = settled().await;
    let before = bytes(&daemon.store.state());
    let (app, web) = {
        let state = daemon.store.state();
        (state.network_by_name("app").expect("app").id, state.service_by_name("web").expect("web").id)
    };
    let network = |name: &str, more: &str| format!(r#"{{"Name":"{name}","Driver":"overlay"{more}}}"#);
    let subnet = |text: &str| network("b", &format!(r#","IPAM":{{"Config":[{text}]}}"#));
    let overlap = "invalid pool request: Pool overlaps with other one on this address space";
    let ipam =
        |text: &str| (400, format!("rpc error: code = InvalidArgument desc = ipam configuration: {text}"));
    let unsupported = |what: &str| (501, format!("{what} is not supported by this daemon"));
    let cases = [
        (network("app", ""), (409, "network with name app already exists".to_owned())),
        (network("bridge", ""), (403, "bridge is a pre-defined network and cannot be created".into())),
        (
            network("", ""),
            (400, "rpc error: code = InvalidArgument desc = meta: name must be provided".into()),
        ),
        (subnet(r#"{"Subnet":"10.77.0.128/25"}"#), (403, overlap.into())),
        (subnet(r#"{"Subnet":"10.0.0.0/16"}"#), (403, overlap.into())),
        (subnet(r#"{"Subnet":"10.9"}"#), ipam("invalid subnet 10.9")),
        (subnet(r#"{"Gateway":"10.9.0.1"}"#), ipam("invalid subnet ")),
        (
            subnet(r#"{"Subnet":"10.9.0.0/24","Gateway":"10.8.0.1"}"#),
            ipam("subnet 10.9.0.0/24 does not contain gateway 10.8.0.1"),
        ),
        (
            subnet(r#"{"Subnet":"10.9.0.0/24","IPRange":"10.8.0.0/25"}"#),
            ipam("subnet 10.9.0.0/24 does not contain range 10.8.0.0/25"),
        ),
        (subnet(r#"{"Subnet":"fd00::/64"}"#), ipam("subnet fd00::/64 needs IPv6 in the network (--ipv6)")),
        (r#"{"Name":"b","Driver":"bridge"}"#.into(), unsupported("network driver bridge (use -d overlay)")),
        (network("b", r#","Options":{"encrypted":""}"#), unsupported("network option encrypted")),
        (
            network("b", r#","Options":{"com.docker.network.driver.mtu":"12"}"#),
            (400, "invalid MTU \"12\": 68..=65535 bytes".into()),
        ),
        (
            network("b", r#","Ingress":true"#),
            (
                409,
                format!(
                    "rpc error: code = AlreadyExists desc = ingress network ({}) is already present",
                    daemon.store.state().ingress_network().expect("ingress").id
                ),
            ),
        ),
    ];
    for (body, expected) in cases {
        assert_eq!(daemon.error("POST", "/networks/create", &body).await, expected, "{body}");
    }
    assert_eq!(
        daemon.refuses("network rm app").await.lines().next(),
        Some(common::cli::mask(&format!("Error response from daemon: rpc error: code = FailedPrecondition desc = network {app} is in use by service {web}")).as_str())
    );
    assert_eq!(daemon.error("DELETE", "/networks/none", "").await, (404, "network none not found".into()));
    let predefined = (501, "the predefined network host is not supported by this daemon".to_owned());
    assert_eq!(daemon.error("GET", "/networks/host", "").await, predefined);
    assert!(bytes(&daemon.store.state()) == before, "a refused request changed the state");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn networks_whose_families_do_not_fit_are_refused() {
    let daemon = settled().await;
    let before = bytes(&daemon.store.state());
    let dual = |configs: &str, more: &str| {
        format!(
            r#"{{"Name":"b","Driver":"overlay","EnableIPv6":true,"IPAM":{{"Config":[{configs}]}}{more}}}"#
        )
    };
    let ipam =
        |text: &str| (400, format!("rpc error: code = InvalidArgument desc = ipam configuration: {text}"));
    let cases = [
        (
            dual(r#"{"Subnet":"10.9.0.0/24"},{"Subnet":"fd00::/64","Gateway":"fd00::9"}"#, ""),
            ipam("gateway fd00::9 is not the one that goes with the IPv4 gateway, which has the same host number: leave it out, or use fd00::1"),
        ),
        (
            dual(r#"{"Subnet":"10.9.0.0/24"},{"Subnet":"10.10.0.0/24"}"#, ""),
            ipam("more than one IPv4 subnet: a network has at most one of each family"),
        ),
        (
            dual(r#"{"Subnet":"fd00::/124"}"#, ""),
            ipam("subnet fd00::/124 is too small beside 10.0.0.0/24: an endpoint has the same host number in both, so its prefix may have 120 bits at most"),
        ),
        (
            dual(r#"{"Subnet":"fd00::/64","IPRange":"fd00::/80"}"#, ""),
            ipam("no range in IPv6 subnet fd00::/64: its addresses follow the IPv4 ones"),
        ),
        (
            dual(r#"{"Subnet":"fd44:4444:4444:9::/64"}"#, ""),
            (403, "subnet fd44:4444:4444:9::/64 overlaps with fd44:4444:4444::/48, from which the cluster gives networks their IPv6 subnets".into()),
        ),
        (dual(r#"{"Subnet":"2001:db8:77:0:8000::/65"}"#, ""), (403, "invalid pool request: Pool overlaps with other one on this address space".into())),
        (
            dual("", r#","Options":{"com.docker.network.driver.mtu":"1279"}"#),
            (400, "rpc error: code = InvalidArgument desc = MTU 1279 is too small for IPv6: 1280 is the least (RFC 8200 section 5)".into()),
        ),
        (
            dual("", r#","EnableIPv4":false"#),
            (501, "a network without IPv4 is not supported by this daemon".into()),
        ),
    ];
    for (body, expected) in cases {
        assert_eq!(daemon.error("POST", "/networks/create", &body).await, expected, "{body}");
    }
    assert!(bytes(&daemon.store.state()) == before, "a refused request changed the state");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_and_a_lone_node_manage_nothing() {
    let (worker, alone) = (Daemon::worker().await, Daemon::alone().await);
    for line in [
        "node ls",
        "service ls",
        "service create -d --no-resolve-image whoami:v1",
        "network create -d overlay x",
        "swarm join-token worker",
    ] {
        assert_eq!(
            worker.refuses(line).await.lines().next(),
            Some(format!("Error response from daemon: {NOT_A_MANAGER}").as_str()),
            "{line}"
        );
        assert_eq!(
            alone.refuses(line).await.lines().next(),
            Some(format!("Error response from daemon: {NOT_IN_A_SWARM}").as_str()),
            "{line}"
        );
    }
    for path in ["/nodes", "/services", "/tasks", "/swarm", "/secrets", "/configs"] {
        assert_eq!(worker.error("GET", path, "").await, (503, NOT_A_MANAGER.into()), "{path}");
        assert_eq!(alone.error("GET", path, "").await, (503, NOT_IN_A_SWARM.into()), "{path}");
    }
    assert_eq!(
        alone.error("POST", "/swarm/leave", "").await,
        (503, "This node is not part of a swarm".into())
    );
    assert_eq!(
        alone.error("POST", "/swarm/join", "{}").await,
        (400, "at least 1 RemoteAddr is required to join".into())
    );
    for (body, text) in [
        (r#"{"DefaultAddrPool":["x"]}"#, "invalid CIDR address: x"),
        (r#"{"DefaultAddrPool":["10.0.0.0/8"],"SubnetSize":30}"#, "subnet size is out of range: 30"),
        (
            r#"{"DefaultAddrPool":["10.0.0.0/25"]}"#,
            "invalid CIDR: \"10.0.0.0/25\". Subnet size is too small for pool: 24",
        ),
        (r#"{"DataPathPort":80}"#, "invalid data path port 80: must be between 1024 and 49151"),
        (r#"{"Availability":"maybe"}"#, "invalid Availability: \"maybe\""),
        (r#"{"AdvertiseAddr":"nowhere"}"#, "must specify a listening address: no such interface nowhere"),
    ] {
        assert_eq!(alone.error("POST", "/swarm/init", body).await, (400, text.into()), "{body}");
    }
    assert!(alone.node.inits.lock().expect("no panic").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_request_are_refused() {
    let daemon = Daemon::manager().await;
    daemon.until(is_settled).await;
    let before = bytes(&daemon.store.state());
    let create = "/services/create";
    assert_eq!(
        daemon.error("POST", create, "{\"Name\":").await,
        (400, "invalid JSON: unexpected EOF".into())
    );
    assert_eq!(
        daemon.error("POST", create, " ").await,
        (400, "invalid JSON: got EOF while reading request body".into())
    );
    assert_eq!(daemon.error("POST", create, "{} x").await, (400, "unexpected content after JSON".into()));
    assert_eq!(
        daemon.error("POST", create, "{nope").await,
        (400, "invalid JSON: invalid character 'n' looking for beginning of object key string".into())
    );
    let (status, text) = daemon.error("POST", create, r#"{"Name":7}"#).await;
    assert_eq!(status, 400);
    assert!(text.starts_with("invalid JSON: invalid type: integer `7`, expected a string"), "{text}");

    let large = format!(r#"{{"Name":"{}"}}"#, "x".repeat(4 << 20));
    assert_eq!(
        daemon.error("POST", create, &large).await,
        (500, "rpc error: code = Unknown desc = raft: raft message is too large and can't be sent".into())
    );
    let (status, text) = daemon.request_of("POST", create, Some("text/plain"), b"{}").await;
    assert_eq!(
        (status, text.as_str()),
        (400, r#"{"message":"unsupported Content-Type header (text/plain): must be 'application/json'"}"#)
    );
    let (status, text) = daemon.request_of("POST", create, None, b"{}").await;
    assert_eq!(
        (status, text.as_str()),
        (400, r#"{"message":"malformed Content-Type header (): mime: no media type"}"#)
    );

    let not_found = (404, "page not found".to_owned());
    assert_eq!(daemon.error("GET", "/nothing", "").await, not_found);
    assert_eq!(daemon.error("PUT", "/nodes", "").await, not_found);
    assert_eq!(daemon.error("GET", "/v1.44", "").await, not_found);
    assert_eq!(
        daemon.error("GET", "/v1.12/nodes", "").await,
        (400, "client version 1.12 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version".into())
    );
    assert_eq!(
        daemon.error("GET", "/v1.99/nodes", "").await,
        (400, "client version 1.99 is too new. Maximum supported API version is 1.50".into())
    );
    assert_eq!(daemon.error("GET", "/nodes?filters=x", "").await, (400, "invalid filter".into()));
    assert_eq!(
        daemon.error("GET", "/nodes?filters=%7B%22a%22:%7B%22b%22:true%7D%7D", "").await,
        (400, "invalid filter 'a'".into())
    );
    assert_eq!(
        daemon.error("POST", "/containers/web/pause", "").await,
        (501, "POST /containers/web/pause is not supported by this daemon".into())
    );
    assert!(bytes(&daemon.store.state()) == before, "a refused request changed the state");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inspections_are_answered_and_wrong_ones_refused() {
    let daemon = Daemon::manager().await;
    assert_eq!(daemon.request("GET", "/mesh/drops", b"").await.0, 200);
    assert_eq!(daemon.request("GET", "/mesh/lb/ring?of=10.0.0.2:80/tcp", b"").await.0, 200);
    assert_eq!(daemon.error("GET", "/mesh/lb/ring", "").await.0, 400);
    assert_eq!(daemon.request("GET", "/mesh/lb/flows?limit=10000", b"").await.0, 200);
    for limit in ["10001", "-1", "x", ""] {
        assert_eq!(daemon.error("GET", &format!("/mesh/lb/flows?limit={limit}"), "").await.0, 400);
    }
    assert_eq!(daemon.request("GET", "/mesh/fdb", b"").await.0, 200);
    assert_eq!(daemon.request("GET", "/mesh/top", b"").await.0, 200);
    let trace = "/mesh/trace?from=web.1&to=db:80&protocol=6&port=4000";
    let asked = r#"TraceRequest { from: "web.1", to: "db:80", protocol: 6, port: 4000, ipv6: false }"#;
    assert_eq!(daemon.error("GET", trace, "").await, (500, asked.into()));
    let by_ipv6 = (500, asked.replace("false", "true"));
    assert_eq!(daemon.error("GET", &format!("{trace}&ipv6=true"), "").await, by_ipv6);
    assert_eq!(daemon.error("GET", &format!("{trace}&ipv6=6"), "").await.0, 400);
    for wrong in ["/mesh/trace?from=web.1", "/mesh/trace?from=a&to=b&protocol=x&port=1"] {
        assert_eq!(daemon.error("GET", wrong, "").await.0, 400);
    }
    let tunnelled = "/mesh/trace/tunnelled?from=198.18.0.11&to=198.18.0.12&vni=4096&endpoint=10.0.0.6\
        &source=192.0.2.1:7&destination=198.18.0.11:80&protocol=6";
    assert_eq!(daemon.error("GET", tunnelled, "").await.0, 500, "it came to the node");
    assert_eq!(daemon.error("GET", &tunnelled.replace("4096", "-1"), "").await.0, 400);
    assert_eq!(
        daemon.error("GET", &trace.replace("trace", "trace/live"), "").await,
        (500, format!("live {asked}"))
    );
    assert_eq!(daemon.request("GET", "/mesh/trace/mark?protocol=6&port=4000", b"").await.0, 200);
    assert_eq!(daemon.error("GET", "/mesh/trace/mark?protocol=6&port=x", "").await.0, 400);
    let marked = daemon.error("GET", &tunnelled.replace("tunnelled", "marked"), "").await;
    assert!(marked.1.starts_with("marked TunnelledPacket"), "{marked:?}");
    let (status, zone) = daemon.request("GET", "/mesh/dns/zone?task=web.1&network=app", b"").await;
    assert!(status == 200 && zone.contains("\"network\":\"app\",\"name\":\"web.1\""), "{zone}");
    assert_eq!(daemon.request("GET", "/mesh/dns/zone", b"").await.0, 200);
    for (path, code, error) in [
        ("?task=web.1&name=db&type=SRV", 500, "web.1 asks for db SRV"),
        ("?task=web.1&name=db", 500, "web.1 asks for db A"),
        ("?task=web.1", 400, "task must name a task, and name what it asks for"),
        ("?name=db", 400, "task must name a task, and name what it asks for"),
    ] {
        let path = format!("/mesh/dns/query{path}");
        assert_eq!(daemon.error("GET", &path, "").await, (code, error.into()));
    }
    let (status, samples) = daemon.request("GET", "/mesh/flows?every=7", b"").await;
    assert!(status == 200 && samples.contains(r#""every":7"#), "{samples}");
    for every in ["0", "-1", ""] {
        assert_eq!(daemon.error("GET", &format!("/mesh/flows?every={every}"), "").await.0, 400);
    }
    let (status, metrics) = daemon.request("GET", "/metrics", b"").await;
    assert_eq!((status, metrics.trim_end()), (200, "meshd_rings 3"));
    assert_eq!(daemon.error("GET", "/mesh/status", "").await, (500, "the data plane has not started".into()));
    let (status, rows) = daemon.request("GET", "/mesh/nodes", b"").await;
    assert!(status == 200 && rows.contains(r#""hostname":"m1""#), "{rows:?}");
    let itself = daemon.request("GET", "/mesh/nodes/m1/dns/zone?task=web.1", b"").await;
    assert!(itself.0 == 200 && itself.1.contains(r#""name":"web.1""#), "{itself:?}");
    let refused = daemon.error("GET", "/mesh/nodes/m1/dns/query?task=t&name=db", "").await;
    assert_eq!(refused, (500, "t asks for db A".into()));
    let silent = daemon.error("GET", "/mesh/nodes/w1/lb", "").await;
    assert_eq!(silent, (500, "/mesh/lb: no manager has a session with it".into()));
    assert_eq!(daemon.error("GET", "/mesh/nodes/m1/nodes", "").await, (500, "page not found".into()));
    assert_eq!(daemon.error("GET", "/mesh/nodes/x/lb", "").await.0, 404);
}

#[tokio::test]
async fn over_the_network_there_are_metrics_and_nothing_else() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let node = Arc::new(FakeNode::alone());
    let server = tokio::spawn(control_api::serve_metrics(listener, node, async move { drop(stopped.await) }));
    for (path, status, body) in [("/metrics", "200 OK", "\r\n\r\nmeshd_rings 3\n"), ("/info", "404", "")] {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.ends_with(body), "{answer}");
    }
    stop.send(()).unwrap();
    server.await.unwrap();
}

/// Docker's words for containers that no service has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn networks_that_are_not_attachable_take_no_standalone_container() {
    let daemon = Daemon::manager().await;
    daemon.prints("network create -d overlay closed").await;
    daemon.prints("network create -d overlay --attachable open").await;
    for name in ["closed", "ingress"] {
        let refusal = format!(
            "Could not attach to network {name}: rpc error: code = PermissionDenied desc = network {name} not manually \
             attachable"
        );
        let container = r#"{"Container":"web"}"#;
        let path = format!("/networks/{name}/connect");
        assert_eq!(daemon.error("POST", &path, container).await, (500, refusal.clone()));
        let words = format!("Error response from daemon: {refusal}");
        assert_eq!(daemon.refuses(&format!("network connect {name} web")).await, words);
        assert!(daemon.refuses(&format!("create --network {name} whoami:v1")).await.contains(&refusal));
    }
    let unsupported = |path: &str| (501, format!("POST {path} is not supported by this daemon"));
    let path = "/networks/open/connect";
    assert_eq!(daemon.error("POST", path, "{}").await, unsupported(path));
    let path = "/containers/create";
    let none = r#"{"Image":"whoami:v1","HostConfig":{"NetworkMode":"none-such"}}"#;
    assert_eq!(daemon.error("POST", path, none).await, (400, "network none-such not found".to_owned()));
    assert_eq!(daemon.error("POST", path, "{").await, (400, "invalid JSON: unexpected EOF".to_owned()));
    let beside =
        r#"{"HostConfig":{"NetworkMode":"open"},"NetworkingConfig":{"EndpointsConfig":{"closed":{}}}}"#;
    assert_eq!(daemon.error("POST", path, beside).await.0, 500);
}

/// `docker network rm ingress` asks first; while a service publishes a port, it is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ingress_network_is_removed_and_made_again_with_other_options() {
    let daemon = Daemon::manager().await;
    daemon.prints("service create -d --no-resolve-image --name web --publish 8080:80 whoami:v1").await;
    let web = daemon.store.state().service_by_name("web").expect("made").id;
    let in_use = format!(
        "rpc error: code = FailedPrecondition desc = ingress network cannot be removed because service {web} depends on it"
    );
    assert_eq!(daemon.error("DELETE", "/networks/ingress", "").await, (400, in_use));
    daemon.prints("service rm web").await;
    daemon.until(|state| state.services().is_empty()).await;
    let unsure = daemon.docker_with_input("network rm ingress", b"n\n").await;
    assert!(unsure.stdout.contains("removing the routing-mesh network"), "{unsure:?}");
    assert!(daemon.store.state().ingress_network().is_some_and(|network| !network.pending_delete));
    let removed = daemon.docker_with_input("network rm ingress", b"y\n").await;
    assert!(removed.code == 0 && removed.stdout.ends_with("ingress\n"), "{removed:?}");
    let refused =
        daemon.refuses("service create -d --no-resolve-image --name web --publish 8080:80 whoami:v1").await;
    assert!(
        refused.contains("service needs ingress network, but no ingress network is present"),
        "{refused}"
    );
    assert!(
        daemon
            .refuses("network create -d overlay --ingress --attachable mesh")
            .await
            .contains("ingress network cannot be attachable")
    );
    daemon
        .prints("network create -d overlay --ingress --subnet 10.66.0.0/16 --opt com.docker.network.driver.mtu=1280 mesh")
        .await;
    daemon.prints("service create -d --no-resolve-image --name web --publish 8080:80 whoami:v1").await;
    daemon.running("web", 1).await;
    let state = daemon.store.state();
    let mesh = state.ingress_network().expect("made again");
    let task = state.tasks().iter().find(|task| task.service_name == "web").expect("runs");
    assert_eq!(mesh.spec.name, "mesh");
    assert!(
        task.attachments
            .iter()
            .any(|a| a.network == mesh.id && a.address.to_string().starts_with("10.66.0."))
    );
}
