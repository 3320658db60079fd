//! Golden JSON: what goes in comes out, with Docker's defaults, order and omissions.

use control_model::NetworkId;
use control_model::spec::{ClusterSpec, RestartPolicy, ServiceMode, UpdateConfig};
use serde_json::Value;

use super::cluster::cluster_spec;
use super::network::network_spec;
use super::node::node_spec;
use super::spec_in::service_spec;
use super::spec_out::{self, Defaults};
use crate::body::decode;
use crate::dto;
use crate::error::ApiError;

const NETWORK: NetworkId = NetworkId::from_bits(5);

fn network(target: &str) -> Result<NetworkId, ApiError> {
    if target == "app" || target == NETWORK.to_string() {
        return Ok(NETWORK);
    }
    Err(ApiError::not_found(format!("network {target} not found")))
}

/// Decodes, converts there and back, and prints.
fn round(body: &str, defaults: Defaults) -> String {
    let given: dto::service::ServiceSpec = decode(body.as_bytes()).expect("JSON");
    let spec = service_spec(given, &network).expect("a spec");
    serde_json::to_string(&spec_out::service_spec(&spec, defaults)).expect("JSON")
}

/// What CLI 28.2.2 sends for `service create --name web --network app -p 8080:80 whoami`.
const PLAIN: &str = r#"{"Name":"web","Labels":{},"TaskTemplate":{"ContainerSpec":{"Image":"whoami","Init":false,"DNSConfig":{}},"Resources":{"Limits":{},"Reservations":{}},"Placement":{},"Networks":[{"Target":"app"}],"ForceUpdate":0},"Mode":{"Replicated":{}},"EndpointSpec":{"Mode":"vip","Ports":[{"Protocol":"tcp","TargetPort":80,"PublishedPort":8080,"PublishMode":"ingress"}]}}"#;

#[test]
fn a_plain_service_comes_back_as_docker_shows_it() {
    assert_eq!(
        round(PLAIN, Defaults::Omit),
        r#"{"Name":"web","Labels":{},"TaskTemplate":{"ContainerSpec":{"Image":"whoami","Init":false,"DNSConfig":{}},"Resources":{"Limits":{},"Reservations":{}},"Placement":{},"Networks":[{"Target":"0000000000000000000000005"}],"ForceUpdate":0,"Runtime":"container"},"Mode":{"Replicated":{"Replicas":1}},"EndpointSpec":{"Mode":"vip","Ports":[{"Protocol":"tcp","TargetPort":80,"PublishedPort":8080,"PublishMode":"ingress"}]}}"#
    );
    let inserted: Value = serde_json::from_str(&round(PLAIN, Defaults::Insert)).expect("JSON");
    let update = serde_json::json!({
        "Parallelism": 1, "FailureAction": "pause", "Monitor": 5_000_000_000_u64, "MaxFailureRatio": 0.0,
        "Order": "stop-first"
    });
    assert_eq!((&inserted["UpdateConfig"], &inserted["RollbackConfig"]), (&update, &update));
    let restart = serde_json::json!({ "Condition": "any", "Delay": 5_000_000_000_u64, "MaxAttempts": 0 });
    assert_eq!(inserted["TaskTemplate"]["RestartPolicy"], restart);
    assert_eq!(inserted["TaskTemplate"]["ContainerSpec"]["StopGracePeriod"], 10_000_000_000_u64);
}

/// All that a service can say here.
const FULL: &str = r#"{"Name":"all","Labels":{"a":"b"},"TaskTemplate":{"ContainerSpec":{"Image":"reg:5000/x:1","Labels":{"c":"d"},"Command":["/x"],"Args":["-v"],"Hostname":"{{.Task.Name}}","Env":["A=1","B"],"Dir":"/w","User":"1:2","Groups":["g"],"Init":true,"StopSignal":"SIGQUIT","TTY":true,"OpenStdin":true,"ReadOnly":true,"Mounts":[{"Type":"bind","Source":"/s","Target":"/t","ReadOnly":true},{"Type":"volume","Source":"v","Target":"/v","VolumeOptions":{"Labels":{"com.docker.stack.namespace":"s"}}},{"Type":"tmpfs","Target":"/tmp","TmpfsOptions":{"SizeBytes":1048576,"Mode":511}}],"StopGracePeriod":90000000000,"Hosts":["10.0.0.9 db"],"DNSConfig":{"Nameservers":["9.9.9.9"],"Search":["x"],"Options":["ndots:1"]},"Sysctls":{"net.core.somaxconn":"1024"},"CapabilityAdd":["CAP_NET_ADMIN"],"CapabilityDrop":["CAP_CHOWN"],"Ulimits":[{"Name":"nofile","Hard":2048,"Soft":1024}],"Healthcheck":{"Test":["CMD-SHELL","true"],"Interval":1000000000,"Timeout":2000000000,"StartPeriod":3000000000,"StartInterval":1000000,"Retries":4}},"Resources":{"Limits":{"NanoCPUs":500000000,"MemoryBytes":67108864,"Pids":100},"Reservations":{"NanoCPUs":250000000,"MemoryBytes":33554432,"GenericResources":[{"DiscreteResourceSpec":{"Kind":"gpu","Value":2}}]}},"RestartPolicy":{"Condition":"on-failure","Delay":1000000000,"MaxAttempts":3,"Window":60000000000},"Placement":{"Constraints":["node.role==worker"],"Preferences":[{"Spread":{"SpreadDescriptor":"node.labels.zone"}}],"MaxReplicas":2,"Platforms":[{"Architecture":"amd64","OS":"linux"}]},"Networks":[{"Target":"0000000000000000000000005","Aliases":["db"]}],"ForceUpdate":4,"Runtime":"container"},"Mode":{"Global":{}},"UpdateConfig":{"Parallelism":2,"Delay":10000000000,"FailureAction":"rollback","Monitor":30000000000,"MaxFailureRatio":0.25,"Order":"start-first"},"RollbackConfig":{"Parallelism":0,"FailureAction":"continue","Monitor":5000000000,"MaxFailureRatio":0.0,"Order":"stop-first"},"EndpointSpec":{"Mode":"dnsrr","Ports":[{"Name":"p","Protocol":"udp","TargetPort":53,"PublishedPort":53,"PublishMode":"host"}]}}"#;

#[test]
fn a_full_service_comes_back_to_the_letter() {
    assert_eq!(round(FULL, Defaults::Omit), FULL);
    assert_eq!(round(FULL, Defaults::Insert), FULL);
}

#[test]
fn jobs_come_back_to_the_letter() {
    for (given, shown) in [
        (r#"{"ReplicatedJob":{"MaxConcurrent":2,"TotalCompletions":7}}"#, None),
        (r#"{"GlobalJob":{}}"#, None),
        (r#"{"ReplicatedJob":{}}"#, Some(r#"{"ReplicatedJob":{"MaxConcurrent":1,"TotalCompletions":1}}"#)),
        (
            r#"{"ReplicatedJob":{"MaxConcurrent":3}}"#,
            Some(r#"{"ReplicatedJob":{"MaxConcurrent":3,"TotalCompletions":3}}"#),
        ),
    ] {
        let body =
            format!(r#"{{"Name":"x","TaskTemplate":{{"ContainerSpec":{{"Image":"a"}}}},"Mode":{given}}}"#);
        let round: Value = serde_json::from_str(&round(&body, Defaults::Omit)).expect("JSON");
        assert_eq!(round["Mode"].to_string(), shown.unwrap_or(given), "{given}");
    }
}

#[test]
fn nothing_said_is_dockers_default() {
    let given = decode(br#"{"Name":"x","TaskTemplate":{"ContainerSpec":{"Image":"a"}}}"#).expect("JSON");
    let spec = service_spec(given, &network).expect("a spec");
    assert_eq!(spec.mode, ServiceMode::Replicated { replicas: 1 });
    assert_eq!((spec.update, spec.rollback), (UpdateConfig::default(), UpdateConfig::default()));
    assert_eq!(spec.task.restart, RestartPolicy::default());
    assert!(!spec.has_update && !spec.has_rollback);
}

#[test]
fn what_is_not_supported_is_named_unless_it_says_nothing() {
    let refused = |container: &str| {
        let body = format!(r#"{{"TaskTemplate":{{"ContainerSpec":{{"Image":"a",{container}}}}}}}"#);
        service_spec(decode(body.as_bytes()).expect("JSON"), &network)
            .map(|_| ())
            .map_err(|error| error.message)
    };
    let place = "Spec.TaskTemplate.ContainerSpec";
    assert_eq!(
        refused(r#""Configs":[{"ConfigID":"c","ConfigName":"c","Runtime":{"x":1}}]"#),
        Err(format!("{place}.Configs.Runtime is not supported by this daemon"))
    );
    for (given, why) in [
        (r#""Secrets":[{"SecretName":"s","File":{"Name":"s"}}]"#, "malformed secret reference"),
        (
            r#""Secrets":[{"SecretID":"s","SecretName":"s"}]"#,
            "malformed secret reference, no target provided",
        ),
        (
            r#""Configs":[{"ConfigID":"c","ConfigName":"c","File":{"Name":"c","UID":"web"}}]"#,
            "config c: UID \"web\" is not a number",
        ),
    ] {
        assert_eq!(refused(given), Err(why.to_owned()));
    }
    assert_eq!(
        refused(r#""Isolation":"hyperv""#),
        Err(format!("{place}.Isolation hyperv is not supported by this daemon"))
    );
    assert_eq!(
        refused(
            r#""Configs":[],"Secrets":null,"Privileges":{"NoNewPrivileges":false},"Isolation":"default""#
        ),
        Ok(())
    );
    assert_eq!(
        refused(
            r#""Mounts":[{"Type":"bind","Source":"/a","Target":"/b","BindOptions":{"Propagation":"rprivate"}}]"#
        ),
        Ok(())
    );
    assert_eq!(
        refused(
            r#""Mounts":[{"Type":"bind","Source":"/a","Target":"/b","BindOptions":{"Propagation":"rshared"}}]"#
        ),
        Err(format!("{place}.Mounts.BindOptions is not supported by this daemon"))
    );
}

#[test]
fn health_checks_have_bounds() {
    let taken = |check: &str| {
        let body =
            format!(r#"{{"TaskTemplate":{{"ContainerSpec":{{"Image":"a","Healthcheck":{{{check}}}}}}}}}"#);
        service_spec(decode(body.as_bytes()).expect("JSON"), &network)
            .map(|spec| spec.task.container.health.clone().expect("a check"))
            .map_err(|error| error.message)
    };
    assert_eq!(taken(r#""Test":["NONE"]"#).expect("none is one").test, ["NONE"]);
    for (given, message) in [
        (r#""Interval":999999"#, "Interval in Healthcheck cannot be less than 1ms"),
        (r#""Timeout":-1"#, "Timeout in Healthcheck cannot be less than 1ms"),
        (r#""Retries":-1"#, "Retries in Healthcheck cannot be negative"),
    ] {
        assert_eq!(taken(given), Err(message.to_owned()));
    }
}

#[test]
fn a_network_is_taken_as_the_cli_sends_it() {
    let body = r#"{"Driver":"overlay","Scope":"","IPAM":{"Driver":"default","Options":{},"Config":[{"Subnet":"10.9.0.7/16","IPRange":"10.9.1.0/24","Gateway":"10.9.0.1"}]},"Internal":true,"Attachable":false,"Ingress":false,"ConfigOnly":false,"ConfigFrom":null,"Options":{"com.docker.network.driver.mtu":"1400"},"Labels":{"x":""},"Name":"n","CheckDuplicate":true}"#;
    let spec = network_spec(decode(body.as_bytes()).expect("JSON")).expect("a network");
    assert_eq!((spec.name.as_str(), spec.internal, spec.labels["x"].as_str()), ("n", true, ""));
    assert_eq!(spec.ipam[0].subnet.to_string(), "10.9.0.0/16");
    assert_eq!(spec.ipam[0].range.map(|range| range.to_string()).as_deref(), Some("10.9.1.0/24"));
    assert_eq!(spec.options["com.docker.network.driver.mtu"], "1400");
}

#[test]
fn zeroes_of_a_cluster_spec_are_defaults() {
    let body = r#"{"Labels":null,"Orchestration":{},"Raft":{"ElectionTick":0,"HeartbeatTick":0},"Dispatcher":{},"CAConfig":{},"TaskDefaults":{},"EncryptionConfig":{"AutoLockManagers":false}}"#;
    let spec = cluster_spec(decode(body.as_bytes()).expect("JSON"), ClusterSpec::default()).expect("a spec");
    assert_eq!(spec, ClusterSpec::default());
    let body = r#"{"CAConfig":{"ExternalCAs":[{"URL":"https://ca"}]}}"#;
    let refused = cluster_spec(decode(body.as_bytes()).expect("JSON"), ClusterSpec::default());
    assert_eq!(refused.expect_err("no").message, "Spec.CAConfig.ExternalCAs is not supported by this daemon");
}

#[test]
fn raft_is_told_how_much_it_keeps_and_not_how_fast_it_is() {
    let taken = |raft: &str| {
        let body = format!(r#"{{"Raft":{raft}}}"#);
        cluster_spec(decode(body.as_bytes()).expect("JSON"), ClusterSpec::default())
    };
    let spec =
        taken(r#"{"SnapshotInterval":7,"LogEntriesForSlowFollowers":3,"ElectionTick":10,"HeartbeatTick":1}"#)
            .expect("what `docker swarm update` sends back");
    assert_eq!((spec.snapshot_interval, spec.log_entries_for_slow_followers), (7, 3));
    for (raft, message) in [
        (r#"{"ElectionTick":3}"#, "Spec.Raft.ElectionTick 3 is not supported by this daemon"),
        (r#"{"HeartbeatTick":2}"#, "Spec.Raft.HeartbeatTick 2 is not supported by this daemon"),
    ] {
        assert_eq!(taken(raft).expect_err("not obeyed").message, message);
    }
}

#[test]
fn nodes_have_a_role_and_an_availability() {
    let given = decode(br#"{"Labels":{"a":"b"},"Role":"manager","Availability":"drain"}"#).expect("JSON");
    let spec = node_spec(given).expect("a spec");
    assert_eq!(spec.role, control_model::spec::Role::Manager);
    let bad = node_spec(decode(br#"{"Role":"worker","Availability":"off"}"#).expect("JSON"));
    assert_eq!(bad.expect_err("no").message, "invalid Availability: \"off\"");
}
