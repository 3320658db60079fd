//! Requests that no client of good will sends: each gets an error in JSON that says what is wrong, none changes the
//! state or ends the daemon. What clients get wrong in good faith is in `refusals.rs`.

mod common;

use common::Daemon;
use control_store::ReplicatedStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Method, path, body, status, and how the message begins.
type Case = (&'static str, String, String, u16, &'static str);

/// Bodies of `/services/create`: members of the spec beside a good name and image.
fn specs() -> Vec<Case> {
    let deep = format!(r#""Labels":{}{}"#, "[".repeat(10_000), "]".repeat(10_000));
    let cases = [
        (r#""Mode":{"Replicated":{"Replicas":-1}}"#, 400, "invalid JSON: invalid value: integer `-1`"),
        (r#""Mode":{"Replicated":{"Replicas":1.5}}"#, 400, "invalid JSON: invalid type: floating point"),
        (r#""Mode":{"Replicated":{"Replicas":"3"}}"#, 400, "invalid JSON: invalid type: string \"3\""),
        (r#""Mode":"global""#, 400, "invalid JSON: invalid type: string \"global\""),
        (r#""Mode":{"Nothing":{}}"#, 501, "Spec.Mode.Nothing is not supported by this daemon"),
        (
            r#""EndpointSpec":{"Ports":[{"TargetPort":0}]}"#,
            400,
            "rpc error: code = InvalidArgument desc = EndpointSpec: target port",
        ),
        (r#""EndpointSpec":{"Ports":[{"TargetPort":70000}]}"#, 400, "invalid port 70000: at most 65535"),
        (r#""EndpointSpec":{"Ports":[{"TargetPort":-1}]}"#, 400, "invalid JSON: invalid value: integer `-1`"),
        (
            r#""EndpointSpec":{"Ports":[{"TargetPort":1,"PublishedPort":81},{"TargetPort":2,"PublishedPort":81}]}"#,
            400,
            "rpc error: code = InvalidArgument desc = EndpointSpec: duplicate published ports provided",
        ),
        (
            r#""EndpointSpec":{"Ports":[{"TargetPort":1,"Protocol":"icmp"}]}"#,
            400,
            "invalid protocol \"icmp\"",
        ),
        (
            r#""EndpointSpec":{"Ports":[{"TargetPort":1,"PublishMode":"x"}]}"#,
            400,
            "invalid publish mode \"x\"",
        ),
        (r#""UpdateConfig":{"Order":"x"}"#, 400, "unrecognized update order x"),
        (r#""UpdateConfig":{"Delay":"5s"}"#, 400, "invalid JSON: invalid type: string \"5s\""),
        (r#""Labels":{"a":1}"#, 400, "invalid JSON: invalid type: integer `1`"),
        (r#""Bogus":{"x":1}"#, 501, "Spec.Bogus is not supported by this daemon"),
        (deep.as_str(), 400, "invalid JSON: recursion limit exceeded"),
    ];
    cases.map(|(member, status, text)| create(&format!(r#"{{"Name":"b",{member}}}"#), status, text)).into()
}

/// Members of the container's spec beside a good image.
fn containers() -> Vec<Case> {
    let cases = [
        (r#""Mounts":[{"Type":"magic","Target":"/x"}]"#, 400, "invalid MountType: \"magic\""),
        (
            r#""Mounts":[{"Type":"bind","Source":"rel","Target":"/x"}]"#,
            400,
            "rpc error: code = InvalidArgument desc = invalid mount config for type \"bind\": invalid mount path: 'rel'",
        ),
        (
            r#""Mounts":[{"Type":"volume","Source":"a","Target":"/x","VolumeOptions":{"DriverConfig":{"Name":"nfs"}}}]"#,
            501,
            "volume driver nfs is not supported by this daemon",
        ),
        (
            r#""Mounts":[{"Type":"volume","Source":"a"}]"#,
            400,
            "rpc error: code = InvalidArgument desc = invalid mount config for type \"volume\": field Target must not be empty",
        ),
        (
            r#""Mounts":[{"Type":"tmpfs","Target":"/x","TmpfsOptions":{"SizeBytes":-1}}]"#,
            400,
            "tmpfs size must not be negative",
        ),
        (
            r#""Env":["A=1","A=2",""]"#,
            400,
            "rpc error: code = InvalidArgument desc = invalid environment variable: ",
        ),
        (r#""Env":{"A":"1"}"#, 400, "invalid JSON: invalid type: map, expected a sequence"),
        (
            r#""Hostname":"{{.Node.Nope}}""#,
            400,
            "rpc error: code = InvalidArgument desc = template: {{.Node.Nope}} is not",
        ),
        (
            r#""Env":["A={{.Task.ID"]"#,
            400,
            "rpc error: code = InvalidArgument desc = template: unclosed action",
        ),
        (
            r#""StopGracePeriod":-5"#,
            400,
            "rpc error: code = InvalidArgument desc = TaskSpec: stop-grace-period",
        ),
        (r#""DNSConfig":{"Nameservers":["x"]}"#, 400, "invalid DNS server address: x"),
    ];
    let body =
        |member| format!(r#"{{"Name":"b","TaskTemplate":{{"ContainerSpec":{{"Image":"a",{member}}}}}}}"#);
    cases.map(|(member, status, text)| create(&body(member), status, text)).into()
}

/// A good spec lacks nothing but what `body` says wrongly.
fn create(body: &str, status: u16, text: &'static str) -> Case {
    let task = r#""TaskTemplate":{"ContainerSpec":{"Image":"a"}}"#;
    let body = match body.strip_suffix('}').filter(|body| !body.contains("TaskTemplate")) {
        Some(body) => format!("{body},{task}}}"),
        None => body.to_owned(),
    };
    ("POST", "/services/create".into(), body, status, text)
}

fn networks() -> Vec<Case> {
    let invalid = "rpc error: code = InvalidArgument desc = ipam configuration: invalid subnet";
    let cases = ["10.9.0.0/33", "0.0.0.0/0", "10.9.0.0/31", "10.9.0.0/32", "224.0.0.0/24", "127.1.0.0/16"]
        .map(|subnet| {
            let body =
                format!(r#"{{"Name":"b","Driver":"overlay","IPAM":{{"Config":[{{"Subnet":"{subnet}"}}]}}}}"#);
            ("POST", "/networks/create".into(), body, 400, invalid)
        });
    cases.into()
}

/// Requests without a body that matters.
fn paths() -> Vec<Case> {
    let filter = |path: &str, filters: &str| format!("{path}?filters={}", filters.replace('"', "%22"));
    let cases = [
        ("GET", filter("/services", "%7B\"name\":\"x\"%7D"), 400, "invalid filter"),
        ("GET", filter("/services", "%7B\"nope\":[\"x\"]%7D"), 400, "invalid filter 'nope'"),
        ("GET", filter("/services", "%FF"), 400, "invalid filter"),
        (
            "GET",
            filter("/tasks", "%7B\"desired-state\":%7B\"x\":true%7D%7D"),
            400,
            "Invalid desired-state filter: 'x'",
        ),
        ("GET", filter("/tasks", "%7B\"service\":[\"none\"]%7D"), 404, "service none not found"),
        ("GET", filter("/nodes", "%7B\"role\":[\"x\"]%7D"), 400, "Invalid role filter: 'x'"),
        ("GET", filter("/networks", "%7B\"type\":[\"x\"]%7D"), 400, "invalid filter: 'type'='x'"),
        ("GET", filter("/networks", "%7B\"dangling\":[\"1\"]%7D"), 400, "invalid filter 'dangling'"),
        ("GET", filter("/images/json", "%7B\"dangling\":[\"x\"]%7D"), 400, "invalid filter 'dangling=[x]'"),
        ("GET", "/services?status=maybe".into(), 400, "invalid value for status: maybe"),
        ("POST", "/services/web/update?version=-1".into(), 400, "invalid service version '-1'"),
        (
            "POST",
            "/services/web/update?version=99999999999999999999".into(),
            400,
            "invalid service version '99999999999999999999': strconv.ParseUint: parsing \"99999999999999999999\": value out of range",
        ),
        ("DELETE", "/services/".into(), 404, "page not found"),
        ("GET", format!("/services/{}", "a".repeat(30_000)), 404, "service aaaa"),
        ("GET", "/services/%2e%2e%2f%00".into(), 404, "service ../\0 not found"),
        ("GET", "/nodes/%FF%FE".into(), 400, "invalid path: it is not UTF-8"),
        ("GET", "/containers//json".into(), 404, "No such container: "),
        ("GET", "/containers/x/export".into(), 501, "GET /containers/x/export is not supported"),
        ("DELETE", "/containers/x".into(), 404, "No such container: x"),
        ("GET", "/containers/x/logs?stdout=1".into(), 404, "No such container: x"),
        ("GET", "/services/none/logs?stdout=1".into(), 404, "service none not found"),
        ("POST", "/containers/x/exec".into(), 404, "No such container: x"),
        ("POST", "/exec/x/start".into(), 404, "No such exec instance: x"),
        ("POST", "/exec/x/resize".into(), 404, "No such exec instance: x"),
        ("GET", "/events?since=x".into(), 400, "invalid value for 'since'"),
        ("POST", "/images/search".into(), 501, "POST /images/search is not supported"),
        ("POST", "/swarm/unlock".into(), 409, "swarm is not locked"),
        ("DELETE", "/networks/docker_gwbridge".into(), 403, "docker_gwbridge is a pre-defined network"),
        ("PATCH", "/services".into(), 404, "page not found"),
        ("GET", "//nodes".into(), 404, "page not found"),
    ];
    cases.map(|(method, path, status, text)| (method, path, "{}".to_owned(), status, text)).into()
}

/// A client writes its whole body, then reads the reply: also where nobody looks at the body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_nobody_asks_for_costs_no_client_its_reply() {
    let daemon = Daemon::manager().await;
    let refused = [
        ("/networks/ingress/connect", 500),
        ("/build", 501),
        ("/containers/web/start", 404),
        ("/v9.9/info", 400),
        ("/nowhere", 404),
    ];
    let body = vec![b' '; 8 << 20];
    let mut stream = UnixStream::connect(&daemon.socket).await.expect("the socket answers");
    for (path, status) in refused {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.expect("the head is taken");
        stream.write_all(&body).await.unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut reply = Vec::new();
        while !reply.ends_with(b"}\n") {
            assert!(stream.read_buf(&mut reply).await.expect("a reply") > 0, "{path}: closed");
        }
        let reply = String::from_utf8(reply).expect("text");
        assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {reply}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ill_will_gets_words_and_changes_nothing() {
    let daemon = Daemon::manager().await;
    daemon.prints("service create -d --no-resolve-image --name web --publish 8080:80 whoami:v1").await;
    daemon.running("web", 1).await;
    let before = daemon.store.state().to_snapshot();
    for (method, path, body, status, text) in [specs(), containers(), networks(), paths()].concat() {
        let answer = daemon.error(method, &path, &body).await;
        let what = format!("{method} {path:.80} {body:.160}: {answer:.300?}");
        assert_eq!(answer.0, status, "{what}");
        assert!(answer.1.starts_with(text), "{what}");
    }
    assert!(daemon.store.state().to_snapshot() == before, "a refused request changed the state");
}
