use std::time::Duration;

use super::*;
use crate::spec::{ContainerSpec, PortConfig, Protocol};

fn service() -> ServiceSpec {
    ServiceSpec {
        name: "web".into(),
        task: TaskSpec {
            container: ContainerSpec { image: "nginx".into(), ..Default::default() },
            ..Default::default()
        },
        ..ServiceSpec::default()
    }
}

fn refusal(edit: impl FnOnce(&mut ServiceSpec)) -> String {
    let mut spec = service();
    edit(&mut spec);
    validate_service(&spec).expect_err("a bad spec").to_string()
}

fn port(published: u16, mode: PublishMode) -> PortConfig {
    PortConfig::new(Protocol::Tcp, 80, published, mode)
}

#[test]
fn takes_a_plain_service() {
    assert_eq!(validate_service(&service()), Ok(()));
}

#[test]
fn names_are_dns_labels() {
    for (name, text) in [
        ("", "meta: name must be provided"),
        ("a.b", "name must be valid as a DNS name component"),
        ("-a", "name must be valid as a DNS name component"),
        ("a_", "name must be valid as a DNS name component"),
        (&"a".repeat(64), "name must be 63 characters or fewer"),
    ] {
        assert_eq!(refusal(|s| s.name = name.into()), text, "{name}");
    }
    assert_eq!(validate_name("a-_b"), Ok(()));
}

#[test]
fn speaks_of_resources_in_dockers_words() {
    assert_eq!(
        refusal(|s| s.task.resources.limits.nano_cpus = 500_000),
        "invalid cpu value 0.0005: Must be at least 0.001"
    );
    assert_eq!(
        refusal(|s| s.task.resources.reservations.memory_bytes = 1024),
        "invalid memory value 1024: Must be at least 4MiB"
    );
}

#[test]
fn refuses_what_is_no_image() {
    assert_eq!(
        refusal(|s| s.task.container.image.clear()),
        "ContainerSpec: image reference must be provided"
    );
    assert_eq!(
        refusal(|s| s.task.container.image = "No Image".into()),
        "ContainerSpec: \"No Image\" is not a valid repository/tag"
    );
}

#[test]
fn refuses_placeholders_that_no_node_could_expand() {
    let known = "{{.Service.Name}}-{{.Node.Hostname}}-{{.Task.Slot}}";
    let mut good = service();
    good.task.container.hostname = known.into();
    assert_eq!(validate_service(&good), Ok(()));
    assert_eq!(
        refusal(|s| s.task.container.hostname = "{{.Node.Nope}}".into()).split(" is not").next(),
        Some("template: {{.Node.Nope}}")
    );
    assert_eq!(
        refusal(|s| s.task.container.env = vec!["A={{.Task.ID".into()]),
        "template: unclosed action in \"A={{.Task.ID\""
    );
}

#[test]
fn refuses_ports_that_contradict() {
    assert_eq!(
        refusal(|s| s.endpoint.ports = vec![port(8080, PublishMode::Ingress), port(8080, PublishMode::Host)]),
        "EndpointSpec: duplicate published ports provided"
    );
    let dnsrr = refusal(|s| {
        s.endpoint.mode = EndpointMode::Dnsrr;
        s.endpoint.ports = vec![port(8080, PublishMode::Ingress)];
    });
    assert_eq!(dnsrr, "EndpointSpec: port published with ingress mode can't be used with dnsrr mode");
}

#[test]
fn refuses_bad_constraints_and_ratios() {
    let text = refusal(|s| s.task.placement.constraints = vec!["node.role".into()]);
    assert!(text.contains("constraint expected one operator"), "{text}");
    assert_eq!(
        refusal(|s| s.update.max_failure_ratio = 1.5),
        "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1"
    );
    assert_eq!(
        refusal(|s| s.update.max_failure_ratio = f32::NAN),
        "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1"
    );
}

#[test]
fn refuses_mounts_without_a_place() {
    let mount = |source: &str, target: &str, kind| Mount {
        kind,
        source: source.into(),
        target: target.into(),
        read_only: false,
        tmpfs_size_bytes: 0,
        tmpfs_mode: 0,
    };
    let text = refusal(|s| s.task.container.mounts = vec![mount("", "/data", MountKind::Bind)]);
    assert_eq!(text, "invalid mount config for type \"bind\": field Source must not be empty");
    let text = refusal(|s| {
        s.task.container.mounts =
            vec![mount("v", "/d", MountKind::Volume), mount("w", "/d", MountKind::Volume)];
    });
    assert_eq!(text, "ContainerSpec: duplicate mount point: /d");
    let text = refusal(|s| s.task.container.mounts = vec![mount("{{x}}", "/d", MountKind::Volume)]);
    assert!(text.starts_with("template: {{x}} is not a known placeholder"), "{text}");
}

#[test]
fn ranges_and_gateways_are_in_their_subnet() {
    let network = |range: Option<&str>, gateway: Option<&str>| NetworkSpec {
        name: "n".into(),
        ipam: vec![IpamConfig {
            subnet: "10.9.0.0/16".parse().expect("a subnet"),
            range: range.map(|r| r.parse().expect("a range")),
            gateway: gateway.map(|g| g.parse().expect("an address")),
        }],
        ..Default::default()
    };
    assert_eq!(validate_network(&network(Some("10.9.1.0/24"), Some("10.9.0.1"))), Ok(()));
    assert_eq!(
        validate_network(&network(Some("10.8.0.0/24"), None)).expect_err("outside").to_string(),
        "ipam configuration: subnet 10.9.0.0/16 does not contain range 10.8.0.0/24"
    );
    assert_eq!(
        validate_network(&network(None, Some("10.8.0.1"))).expect_err("outside").to_string(),
        "ipam configuration: subnet 10.9.0.0/16 does not contain gateway 10.8.0.1"
    );
}

#[test]
fn the_cluster_keeps_its_name() {
    assert_eq!(validate_cluster(&ClusterSpec::default()), Ok(()));
    let renamed = ClusterSpec { name: "x".into(), ..Default::default() };
    assert_eq!(validate_cluster(&renamed), Err(SpecError::ClusterName));
    let brief = ClusterSpec { node_cert_expiry: Duration::from_mins(1), ..Default::default() };
    assert_eq!(validate_cluster(&brief), Err(SpecError::CertificateExpiry));
}
