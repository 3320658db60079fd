//! A container that no service makes, from JSON. Defaults are Docker's; what can't be done is refused by its name.

use std::collections::BTreeMap;
use std::time::Duration;

use control_model::log_driver::LogDriver;
use control_model::spec::{
    ContainerSpec, Mount, MountKind, PortConfig, Protocol, PublishMode, ResourceRequirements, Resources,
    TaskSpec,
};
use control_model::standalone::{ConsoleSize, NetworkMode, RestartRule, StandaloneSpec};

use super::refuse_unknown;
use super::spec_in::{dns_config, health_config, mount, ulimit};
use super::words::Words as _;
use crate::dto::create::{CreateRequest, HostConfig, LogConfig, PortBinding, RestartPolicy, Words};
use crate::dto::task::DnsConfig;
use crate::error::ApiError;

const PLACE: &str = "HostConfig";
/// What every container has, bytes: a client that says so says nothing.
const SHM_BYTES: i64 = 64 << 20;
/// Of a port that is published on all addresses.
const ANY_ADDRESS: [&str; 2] = ["", "0.0.0.0"];
/// Options of a tmpfs that each has, or that say nothing.
const TMPFS_DEFAULTS: [&str; 5] = ["rw", "noexec", "nosuid", "nodev", ""];

/// The container that `given` asks for, in a network that is known; `shown` is what `docker inspect` shows again.
pub fn standalone_spec(
    given: CreateRequest,
    network: NetworkMode,
    shown: String,
) -> Result<StandaloneSpec, ApiError> {
    refuse_unknown(&given.rest, "Config")?;
    let host = &given.host_config;
    refuse_host_config(host)?;
    let restart = restart_rule(&host.restart_policy)?;
    if host.auto_remove && restart != RestartRule::No {
        return Err(ApiError::invalid("can't create 'AutoRemove' container with restart policy"));
    }
    // Without a network there is nobody to publish to.
    let (ports, publishes_all) = match network {
        NetworkMode::None => (Vec::new(), false),
        NetworkMode::Bridge | NetworkMode::Swarm { .. } => {
            (ports(&host.port_bindings)?, host.publish_all_ports)
        }
    };
    let console = host.console_size.filter(|size| *size != [0, 0]);
    let (mounts, made_dirs) = mounts(&given)?;
    Ok(StandaloneSpec {
        ports,
        publishes_all,
        exposed_ports: given.exposed_ports.keys().map(|key| port_key(key)).collect::<Result<_, _>>()?,
        network,
        restart,
        auto_remove: host.auto_remove,
        stdin_once: given.stdin_once,
        console: console.map(|[rows, columns]| ConsoleSize { rows, columns }),
        made_dirs,
        shown,
        task: TaskSpec {
            resources: resources(host)?,
            log_driver: log_driver(&host.log_config),
            container: container_spec(given, mounts)?,
            ..TaskSpec::default()
        },
    })
}

fn refuse_host_config(host: &HostConfig) -> Result<(), ApiError> {
    refuse_unknown(&host.rest, PLACE)?;
    let named = [
        ("Isolation", !matches!(host.isolation.as_str(), "" | "default")),
        ("VolumeDriver", !matches!(host.volume_driver.as_str(), "" | "local")),
        ("ShmSize", ![0, SHM_BYTES].contains(&host.shm_size)),
        ("MemorySwappiness", host.memory_swappiness.is_some_and(|percent| percent != -1)),
    ];
    match named.into_iter().find(|(_, is_refused)| *is_refused) {
        Some((key, _)) => Err(ApiError::unsupported(format!("{PLACE}.{key}"))),
        None => Ok(()),
    }
}

fn container_spec(given: CreateRequest, mounts: Vec<Mount>) -> Result<ContainerSpec, ApiError> {
    let host = given.host_config;
    let (command, args) = command(given.entrypoint, given.cmd)?;
    if let Some(entry) = given.env.iter().find(|entry| entry.is_empty() || entry.starts_with('=')) {
        return Err(ApiError::invalid(format!("invalid environment variable: {entry}")));
    }
    let dns = DnsConfig { nameservers: host.dns, search: host.dns_search, options: host.dns_options };
    let forever = |seconds: i64| u64::try_from(seconds).map_or(Duration::MAX, Duration::from_secs);
    Ok(ContainerSpec {
        image: given.image,
        labels: given.labels,
        command,
        args,
        hostname: given.hostname,
        env: given.env,
        dir: given.working_dir,
        user: given.user,
        groups: host.group_add,
        tty: given.tty,
        open_stdin: given.open_stdin,
        read_only: host.readonly_rootfs,
        init: host.init,
        mounts,
        stop_signal: given.stop_signal,
        stop_grace_period: given.stop_timeout.map(forever),
        hosts: host.extra_hosts.iter().map(|text| extra_host(text)).collect::<Result<_, _>>()?,
        dns: dns_config(dns)?,
        sysctls: host.sysctls,
        cap_add: host.cap_add,
        cap_drop: host.cap_drop,
        ulimits: host.ulimits.into_iter().map(ulimit).collect(),
        health: given.healthcheck.map(|health| health_config(health, "Config.Healthcheck")).transpose()?,
        dependencies: Vec::new(),
        registry: None,
    })
}

/// What replaces the image's entrypoint, and its command. One that is empty takes the image's away.
fn command(entrypoint: Option<Words>, cmd: Option<Words>) -> Result<(Vec<String>, Vec<String>), ApiError> {
    let entrypoint = entrypoint.map(Words::all).unwrap_or_default();
    let mut cmd = cmd.map(Words::all).unwrap_or_default();
    if entrypoint != [""] {
        return Ok((entrypoint, cmd));
    }
    if cmd.is_empty() {
        return Err(ApiError::invalid("no command specified"));
    }
    let args = cmd.split_off(1);
    Ok((cmd, args))
}

fn resources(host: &HostConfig) -> Result<ResourceRequirements, ApiError> {
    let amounts =
        [("memory", host.memory), ("memory reservation", host.memory_reservation), ("CPUs", host.nano_cpus)];
    if let Some((what, _)) = amounts.iter().find(|(_, amount)| *amount < 0) {
        return Err(ApiError::invalid(format!("invalid {what}: must not be negative")));
    }
    Ok(ResourceRequirements {
        limits: Resources { nano_cpus: host.nano_cpus, memory_bytes: host.memory },
        reservations: Resources { nano_cpus: 0, memory_bytes: host.memory_reservation },
        pids_limit: host.pids_limit.unwrap_or(0).max(0),
        ..ResourceRequirements::default()
    })
}

fn log_driver(given: &LogConfig) -> Option<LogDriver> {
    let is_given = !given.driver.is_empty() || !given.config.is_empty();
    is_given.then(|| LogDriver { name: given.driver.clone(), options: given.config.clone() })
}

/// Words of moby `daemon/container.go`.
pub fn restart_rule(given: &RestartPolicy) -> Result<RestartRule, ApiError> {
    let invalid = |why: &str| Err(ApiError::invalid(format!("invalid restart policy: {why}")));
    let rule = match given.name.as_str() {
        "" | "no" => RestartRule::No,
        "always" => RestartRule::Always,
        "unless-stopped" => RestartRule::UnlessStopped,
        "on-failure" => match u32::try_from(given.maximum_retry_count) {
            Ok(max_attempts) => return Ok(RestartRule::OnFailure { max_attempts }),
            Err(_) => return invalid("maximum retry count cannot be negative"),
        },
        other => {
            return invalid(&format!(
                "unknown policy '{other}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
            ));
        }
    };
    if given.maximum_retry_count != 0 {
        return invalid("maximum retry count can only be used with 'on-failure'");
    }
    Ok(rule)
}

fn ports(given: &BTreeMap<String, Vec<PortBinding>>) -> Result<Vec<PortConfig>, ApiError> {
    let mut ports = Vec::new();
    for (key, bindings) in given {
        let (target, protocol) = port_of(key)?;
        for PortBinding { host_ip, host_port } in bindings {
            if !ANY_ADDRESS.contains(&host_ip.as_str()) {
                return Err(ApiError::unsupported(format!("{PLACE}.PortBindings at {host_ip} alone")));
            }
            if host_port.contains('-') {
                return Err(ApiError::unsupported(format!("{PLACE}.PortBindings of the range {host_port}")));
            }
            let published = match host_port.as_str() {
                "" => 0,
                text => text.parse().map_err(|_| invalid_port(text))?,
            };
            ports.push(PortConfig::new(protocol, target, published, PublishMode::Host));
        }
    }
    Ok(ports)
}

/// `80/tcp`, or `80`.
fn port_of(key: &str) -> Result<(u16, Protocol), ApiError> {
    let (number, protocol) = key.split_once('/').unwrap_or((key, "tcp"));
    let number = number.parse().ok().filter(|number| *number != 0).ok_or_else(|| invalid_port(key))?;
    Ok((number, Protocol::of_word(protocol).ok_or_else(|| invalid_port(key))?))
}

fn port_key(key: &str) -> Result<String, ApiError> {
    let (number, protocol) = port_of(key)?;
    Ok(format!("{number}/{}", protocol.word()))
}

fn invalid_port(text: &str) -> ApiError {
    ApiError::invalid(format!("invalid port specification: {text:?}"))
}

/// `name:address`, as a line of `/etc/hosts`.
fn extra_host(text: &str) -> Result<String, ApiError> {
    let malformed = || ApiError::invalid(format!("invalid extra-host: {text}"));
    let (name, address) = text.split_once([':', '=']).ok_or_else(malformed)?;
    if address == "host-gateway" {
        return Err(ApiError::unsupported(format!("{PLACE}.ExtraHosts of host-gateway")));
    }
    Ok(format!("{} {name}", address.trim_matches(['[', ']'])))
}

/// All mounts, and the directories that are made for them where there are none.
fn mounts(given: &CreateRequest) -> Result<(Vec<Mount>, Vec<String>), ApiError> {
    let host = &given.host_config;
    let (mut mounts, mut made_dirs) = (Vec::new(), Vec::new());
    for text in &host.binds {
        let bound = bind(text)?;
        if bound.kind == MountKind::Bind {
            made_dirs.push(bound.source.clone());
        }
        mounts.push(bound);
    }
    for one in &host.mounts {
        mounts.push(mount(one.clone(), &format!("{PLACE}.Mounts"))?);
    }
    for (target, options) in &host.tmpfs {
        mounts.push(tmpfs(target, options)?);
    }
    for target in given.volumes.keys() {
        mounts.push(Mount::volume(target));
    }
    for (at, one) in mounts.iter().enumerate() {
        if !one.target.starts_with('/') || one.target == "/" {
            let words =
                format!("invalid mount path: '{}' mount path must be absolute, and not '/'", one.target);
            return Err(ApiError::invalid(words));
        }
        if mounts[..at].iter().any(|other| other.target == one.target) {
            return Err(ApiError::invalid(format!("Duplicate mount point: {}", one.target)));
        }
    }
    Ok((mounts, made_dirs))
}

/// `source:target[:options]`; a source that is no path is a volume's name.
fn bind(text: &str) -> Result<Mount, ApiError> {
    let invalid = || ApiError::invalid(format!("invalid volume specification: '{text}'"));
    let mut parts = text.split(':');
    let (Some(source), Some(target), options, None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(invalid());
    };
    if source.is_empty() || target.is_empty() {
        return Err(invalid());
    }
    let kind = if source.starts_with('/') { MountKind::Bind } else { MountKind::Volume };
    let mut mount = Mount { kind, source: source.to_owned(), ..Mount::volume(target) };
    for option in options.into_iter().flat_map(|options| options.split(',')) {
        match option {
            "ro" => mount.read_only = true,
            "nocopy" if kind == MountKind::Volume => mount.no_copy = true,
            // Labels of systems that are not here; what a bind is anyway.
            "rw" | "z" | "Z" | "rprivate" => {}
            "private" | "shared" | "rshared" | "slave" | "rslave" | "consistent" | "cached" | "delegated" => {
                return Err(ApiError::unsupported(format!("{PLACE}.Binds with the option {option}")));
            }
            _ => return Err(invalid()),
        }
    }
    Ok(mount)
}

fn tmpfs(target: &str, options: &str) -> Result<Mount, ApiError> {
    let mut mount = Mount { kind: MountKind::Tmpfs, ..Mount::volume(target) };
    for option in options.split(',') {
        let invalid = || ApiError::invalid(format!("invalid tmpfs option [{option:?}]"));
        match option.split_once('=') {
            None if option == "ro" => mount.read_only = true,
            None if TMPFS_DEFAULTS.contains(&option) => {}
            Some(("size", size)) => mount.tmpfs_size_bytes = size_bytes(size).ok_or_else(invalid)?,
            Some(("mode", mode)) => {
                mount.tmpfs_mode = u32::from_str_radix(mode, 8).map_err(|_| invalid())?;
            }
            _ => return Err(ApiError::unsupported(format!("{PLACE}.Tmpfs with the option {option}"))),
        }
    }
    Ok(mount)
}

/// `64m`: as `mount(8)` takes it.
fn size_bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1_u64 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::decode;

    fn spec(body: &str) -> Result<StandaloneSpec, String> {
        let given: CreateRequest = decode(body.as_bytes()).expect("JSON");
        standalone_spec(given, NetworkMode::Bridge, String::new()).map_err(|error| error.message)
    }

    fn host(config: &str) -> Result<StandaloneSpec, String> {
        spec(&format!(r#"{{"Image":"a","HostConfig":{config}}}"#))
    }

    #[test]
    fn what_the_cli_sends_without_options_is_taken() {
        let body = r#"{"Hostname":"","Domainname":"","AttachStdout":true,"ExposedPorts":{"80/tcp":{}},"Env":null,"Cmd":null,
            "Image":"web","Volumes":{},"Entrypoint":null,"OnBuild":null,"Labels":{},"HostConfig":{"Binds":null,
            "LogConfig":{"Type":"","Config":{}},"NetworkMode":"default","PortBindings":{"80/tcp":[{"HostIp":"","HostPort":"8080"}]},
            "RestartPolicy":{"Name":"no","MaximumRetryCount":0},"ConsoleSize":[0,0],"CapAdd":null,"MemorySwappiness":-1,
            "OomKillDisable":false,"PidsLimit":0,"BlkioWeightDevice":[]},"NetworkingConfig":{"EndpointsConfig":{"default":{}}}}"#;
        let spec = spec(body).expect("taken");
        let published = PortConfig::new(Protocol::Tcp, 80, 8080, PublishMode::Host);
        assert_eq!((spec.ports, spec.exposed_ports), (vec![published], vec!["80/tcp".to_owned()]));
        assert_eq!((spec.task.container.image.as_str(), spec.restart), ("web", RestartRule::No));
        assert_eq!((spec.console, spec.task.log_driver), (None, None));
    }

    #[test]
    fn an_entrypoint_takes_the_images_away() {
        let words = |body: &str| {
            let container = spec(body).map(|spec| spec.task.container)?;
            Ok::<_, String>((container.command, container.args))
        };
        let owned = |all: &[&str]| all.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        assert_eq!(words(r#"{"Cmd":["a","b"]}"#), Ok((vec![], owned(&["a", "b"]))));
        assert_eq!(words(r#"{"Entrypoint":"/x","Cmd":["a"]}"#), Ok((owned(&["/x"]), owned(&["a"]))));
        assert_eq!(words(r#"{"Entrypoint":[""],"Cmd":["a","b"]}"#), Ok((owned(&["a"]), owned(&["b"]))));
        assert_eq!(words(r#"{"Entrypoint":[""]}"#), Err("no command specified".to_owned()));
    }

    #[test]
    fn binds_are_mounts_of_either_kind() {
        let spec = host(
            r#"{"Binds":["/:/rootfs:ro","data:/data:nocopy","/a:/b"],"Tmpfs":{"/t":"size=5m,mode=700"}}"#,
        )
        .expect("taken");
        let mounts = &spec.task.container.mounts;
        assert_eq!(
            (mounts[0].kind, mounts[0].source.as_str(), mounts[0].read_only),
            (MountKind::Bind, "/", true)
        );
        assert_eq!(
            (mounts[1].kind, mounts[1].no_copy, mounts[1].read_only),
            (MountKind::Volume, true, false)
        );
        assert_eq!((mounts[3].tmpfs_size_bytes, mounts[3].tmpfs_mode), (5 << 20, 0o700));
        assert_eq!(spec.made_dirs, ["/", "/a"]);
        for (binds, words) in [
            (r#"["/a"]"#, "invalid volume specification: '/a'"),
            (r#"["/a:b"]"#, "invalid mount path: 'b' mount path must be absolute, and not '/'"),
            (r#"["/a:/b:what"]"#, "invalid volume specification: '/a:/b:what'"),
            (
                r#"["/a:/b:rshared"]"#,
                "HostConfig.Binds with the option rshared is not supported by this daemon",
            ),
            (r#"["/a:/b","c1:/b"]"#, "Duplicate mount point: /b"),
        ] {
            assert_eq!(host(&format!(r#"{{"Binds":{binds}}}"#)).expect_err(binds), words);
        }
    }

    #[test]
    fn what_can_not_be_done_is_refused_by_name() {
        for (config, what) in [
            (r#"{"Privileged":true}"#, "HostConfig.Privileged"),
            (r#"{"PidMode":"host"}"#, "HostConfig.PidMode"),
            (r#"{"Devices":[{"PathOnHost":"/dev/fuse"}]}"#, "HostConfig.Devices"),
            (r#"{"ShmSize":1}"#, "HostConfig.ShmSize"),
            (r#"{"MemorySwappiness":5}"#, "HostConfig.MemorySwappiness"),
            (
                r#"{"PortBindings":{"80/tcp":[{"HostIp":"127.0.0.1","HostPort":""}]}}"#,
                "HostConfig.PortBindings at 127.0.0.1 alone",
            ),
            (
                r#"{"PortBindings":{"80/tcp":[{"HostPort":"8000-8010"}]}}"#,
                "HostConfig.PortBindings of the range 8000-8010",
            ),
            (r#"{"ExtraHosts":["a:host-gateway"]}"#, "HostConfig.ExtraHosts of host-gateway"),
            (r#"{"Tmpfs":{"/t":"exec"}}"#, "HostConfig.Tmpfs with the option exec"),
        ] {
            assert_eq!(host(config).expect_err(config), format!("{what} is not supported by this daemon"));
        }
        let domain = spec(r#"{"Image":"a","Domainname":"example.com"}"#).expect_err("refused");
        assert_eq!(domain, "Config.Domainname is not supported by this daemon");
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_dockers_words() {
        for (config, words) in [
            (
                r#"{"RestartPolicy":{"Name":"sometimes"}}"#,
                "invalid restart policy: unknown policy 'sometimes'; use one of 'no', 'always', 'on-failure', or \
                 'unless-stopped'",
            ),
            (
                r#"{"RestartPolicy":{"Name":"always","MaximumRetryCount":3}}"#,
                "invalid restart policy: maximum retry count can only be used with 'on-failure'",
            ),
            (
                r#"{"AutoRemove":true,"RestartPolicy":{"Name":"always"}}"#,
                "can't create 'AutoRemove' container with restart policy",
            ),
            (r#"{"PortBindings":{"x/tcp":[{}]}}"#, "invalid port specification: \"x/tcp\""),
            (
                r#"{"PortBindings":{"80/tcp":[{"HostPort":"99999"}]}}"#,
                "invalid port specification: \"99999\"",
            ),
            (r#"{"ExtraHosts":["a"]}"#, "invalid extra-host: a"),
            (r#"{"Memory":-1}"#, "invalid memory: must not be negative"),
        ] {
            assert_eq!(host(config).expect_err(config), words);
        }
        let unset = spec(r#"{"Image":"a","Env":["=x"]}"#).expect_err("refused");
        assert_eq!(unset, "invalid environment variable: =x");
    }

    #[test]
    fn all_else_is_where_it_belongs() {
        let spec = host(
            r#"{"RestartPolicy":{"Name":"on-failure","MaximumRetryCount":3},"Memory":10485760,"NanoCpus":500000000,
                "PidsLimit":100,"GroupAdd":["5"],"Dns":["1.1.1.1"],"ExtraHosts":["db:10.0.0.1","v6:[::1]"],"ConsoleSize":[33,99],
                "LogConfig":{"Type":"none"},"Init":true,"PublishAllPorts":true}"#,
        )
        .expect("taken");
        let (container, limits) = (&spec.task.container, &spec.task.resources);
        assert_eq!(spec.restart, RestartRule::OnFailure { max_attempts: 3 });
        assert_eq!((limits.limits.memory_bytes, limits.pids_limit), (10 << 20, 100));
        assert_eq!(container.hosts, ["10.0.0.1 db", "::1 v6"]);
        assert_eq!((spec.console, spec.publishes_all), (Some(ConsoleSize { rows: 33, columns: 99 }), true));
        assert_eq!(spec.task.log_driver.map(|log| log.name), Some("none".to_owned()));
    }
}
