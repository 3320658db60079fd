use std::time::Duration;

use super::*;
use crate::spec::{ContainerSpec, PortConfig, Protocol};

fn service() -> ServiceSpec {
    ServiceSpec {
        name: "web".into(),
        task: TaskSpec {
            container: ContainerSpec { image: "nginx".into(), ..Default::default() },
            ..Default::default()
        }
        .into(),
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
fn answers_go_straight_to_clients_if_the_label_says_so() {
    let labelled = |value: &str| {
        let mut spec = service();
        spec.labels.insert("mesh.dsr".into(), value.into());
        spec
    };
    assert_eq!(service().dsr(), Some(false));
    for (value, is_direct) in [("true", true), ("false", false)] {
        assert_eq!(validate_service(&labelled(value)), Ok(()));
        assert_eq!(labelled(value).dsr(), Some(is_direct));
    }
    for value in ["", "yes", "True", "1"] {
        let refusal = validate_service(&labelled(value)).expect_err(value).to_string();
        assert_eq!(refusal, format!("label mesh.dsr: {value:?} is neither true nor false"));
    }
}

#[test]
fn tasks_start_slowly_for_a_time_that_is_one() {
    let labelled = |value: &str| {
        let mut spec = service();
        spec.labels.insert("mesh.slow-start".into(), value.into());
        spec
    };
    assert_eq!(service().slow_start(), None);
    assert_eq!(validate_service(&labelled("1m30s")), Ok(()));
    assert_eq!(labelled("1m30s").slow_start(), Some(Duration::from_secs(90)));
    for value in ["", "true", "30", "2h"] {
        let refusal = validate_service(&labelled(value)).expect_err(value).to_string();
        assert_eq!(
            refusal,
            format!("label mesh.slow-start: {value:?} is no time between 1s and 1h (like 30s or 1m30s)")
        );
    }
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
    for (reserved, limit) in [(1 << 30, 1 << 30), (2 << 30, 1 << 30), (1 << 30, 0)] {
        let mut spec = service();
        spec.task.resources.reservations.memory_bytes = reserved;
        spec.task.resources.limits.memory_bytes = limit;
        assert_eq!(validate_service(&spec), Ok(()), "{reserved} of {limit}");
    }
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
        volume_labels: std::collections::BTreeMap::new(),
        volume_options: std::collections::BTreeMap::new(),
        no_copy: false,
    };
    let text = refusal(|s| s.task.container.mounts = vec![mount("", "/data", MountKind::Bind)]);
    assert_eq!(text, "invalid mount config for type \"bind\": field Source must not be empty");
    let text = refusal(|s| {
        s.task.container.mounts =
            vec![mount("v", "/d", MountKind::Volume), mount("w", "/d", MountKind::Volume)];
    });
    assert_eq!(text, "ContainerSpec: duplicate mount point: /d");
    for same in ["/d/", "//d", "/./d/."] {
        let mounts = vec![mount("v", "/d", MountKind::Volume), mount("w", same, MountKind::Volume)];
        let text = refusal(|s| s.task.container.mounts = mounts.clone());
        assert_eq!(text, "ContainerSpec: duplicate mount point: /d", "{same}");
    }
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
fn the_two_families_of_a_network_fit_together() {
    let check = |ipv6: bool, subnets: &[(&str, Option<&str>)], mtu_bytes: &str| {
        let ipam = subnets.iter().map(|(subnet, gateway)| IpamConfig {
            subnet: subnet.parse().expect("a subnet"),
            range: None,
            gateway: gateway.map(|gateway| gateway.parse().expect("an address")),
        });
        let mut spec = NetworkSpec { name: "n".into(), ipv6, ipam: ipam.collect(), ..Default::default() };
        spec.options.insert(NetworkSpec::MTU_OPTION.into(), mtu_bytes.into());
        validate_network(&spec).map_err(|error| error.to_string())
    };
    let (v4, v6) = (("10.9.0.0/24", Some("10.9.0.9")), ("2001:db8::/64", None));
    assert_eq!(check(true, &[v4, v6], "1280"), Ok(()));
    assert_eq!(check(true, &[v4, ("2001:db8::/120", Some("2001:db8::9"))], "1400"), Ok(()));
    assert_eq!(check(true, &[v6], "1280"), Ok(()));
    assert_eq!(check(true, &[], "1280"), Ok(()));
    for (ipv6, subnets, mtu_bytes, expected) in [
        (
            false,
            vec![v4, v6],
            "1400",
            "ipam configuration: subnet 2001:db8::/64 needs IPv6 in the network (--ipv6)",
        ),
        (
            true,
            vec![v4, ("2001:db8::/64", Some("2001:db8::1"))],
            "1400",
            "ipam configuration: gateway 2001:db8::1 is not the one that goes with the IPv4 gateway, which has the same \
             host number: leave it out, or use 2001:db8::9",
        ),
        (
            true,
            vec![v4, ("2001:db8::/121", None)],
            "1400",
            "ipam configuration: subnet 2001:db8::/121 is too small beside 10.9.0.0/24: an endpoint has the same host \
             number in both, so its prefix may have 120 bits at most",
        ),
        (
            true,
            vec![v6, ("2001:db8:1::/64", None)],
            "1400",
            "ipam configuration: more than one IPv6 subnet: a network has at most one of each family",
        ),
        (
            true,
            vec![v4, ("10.8.0.0/24", None)],
            "1400",
            "ipam configuration: more than one IPv4 subnet: a network has at most one of each family",
        ),
        (true, vec![("fe80::/64", None)], "1400", "ipam configuration: invalid subnet fe80::/64"),
        (true, vec![("ff02::/64", None)], "1400", "ipam configuration: invalid subnet ff02::/64"),
        (
            true,
            vec![v4, v6],
            "1279",
            "MTU 1279 is too small for IPv6: 1280 is the least (RFC 8200 section 5)",
        ),
    ] {
        assert_eq!(check(ipv6, &subnets, mtu_bytes), Err(expected.to_owned()));
    }
    let ranged = IpamConfig {
        subnet: "2001:db8::/64".parse().expect("a subnet"),
        range: Some("2001:db8::/96".parse().expect("a range")),
        gateway: None,
    };
    let spec = NetworkSpec { name: "n".into(), ipv6: true, ipam: vec![ranged], ..Default::default() };
    assert!(validate_network(&spec).expect_err("a range").to_string().contains("no range in IPv6 subnet"));
}

#[test]
fn the_cluster_keeps_its_name() {
    assert_eq!(validate_cluster(&ClusterSpec::default()), Ok(()));
    let renamed = ClusterSpec { name: "x".into(), ..Default::default() };
    assert_eq!(validate_cluster(&renamed), Err(SpecError::ClusterName));
    let brief = ClusterSpec { node_cert_expiry: Duration::from_mins(1), ..Default::default() };
    assert_eq!(validate_cluster(&brief), Err(SpecError::CertificateExpiry));
    assert_eq!(SpecError::CertificateExpiry.to_string(), "minimum certificate expiry time is: 1h0m0s");
    let hasty = ClusterSpec { heartbeat_period: Duration::from_millis(999), ..Default::default() };
    assert_eq!(validate_cluster(&hasty), Err(SpecError::HeartbeatPeriod));
    assert_eq!(SpecError::HeartbeatPeriod.to_string(), "minimum heartbeat period is: 1s");
    let slowest = ClusterSpec { heartbeat_period: Duration::from_secs(1), ..Default::default() };
    assert_eq!(validate_cluster(&slowest), Ok(()));
}
