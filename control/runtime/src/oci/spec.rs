//! The OCI runtime's description of a container (runtime-spec `config.json`).

use std::path::{Path, PathBuf};

use control_model::spec::ContainerSpec;
use control_model::standalone::ConsoleSize;
use oci_spec::runtime::{
    BoxBuilder, Linux, LinuxBuilder, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType,
    LinuxResources, Mount, Process, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};

use super::error::PrepareError;
use super::limits::rlimits;
use super::security::{MASKED_PATHS, READONLY_PATHS, capabilities, capability_names, seccomp};
use super::user::ProcessUser;

/// Version of the runtime-spec that both runc 1.1 and crun 1.8 know.
const RUNTIME_SPEC_VERSION: &str = "1.0.2";
/// The namespaces a container has of its own, beside the network's, which is the sandbox.
const OWN_NAMESPACES: [LinuxNamespaceType; 4] =
    [LinuxNamespaceType::Mount, LinuxNamespaceType::Uts, LinuxNamespaceType::Ipc, LinuxNamespaceType::Pid];
/// Ports below 1024 and ping need no capability in a container of one's own network (Docker since 20.10).
const NETWORK_SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// All that the description is made of.
pub(super) struct SpecInput<'a> {
    pub container: &'a ContainerSpec,
    pub rootfs: &'a Path,
    pub arguments: Vec<String>,
    pub environment: Vec<String>,
    pub working_dir: String,
    pub hostname: String,
    pub user: ProcessUser,
    pub mounts: Vec<Mount>,
    pub resources: LinuxResources,
    pub cgroup: &'a str,
    /// A cgroup namespace hides the host's tree; with v1 trees Docker uses none.
    pub own_cgroup_namespace: bool,
}

/// The description, without the sandbox: [`set_network`] adds it when it is there.
pub(super) fn runtime_spec(input: SpecInput<'_>) -> Result<Spec, PrepareError> {
    let names = capability_names(&input.container.cap_add, &input.container.cap_drop)?;
    let root = RootBuilder::default().path(input.rootfs).readonly(input.container.read_only).build();
    let mut linux = linux(&input);
    linux.set_seccomp(Some(seccomp(&names)));
    let mut process = process(&input)?;
    process.set_capabilities(Some(capabilities(&names)));
    let spec = SpecBuilder::default()
        .version(RUNTIME_SPEC_VERSION)
        .root(root.expect("the path is given"))
        .process(process)
        .linux(linux)
        .hostname(input.hostname)
        .mounts(input.mounts)
        .build();
    Ok(spec.expect("all parts are given"))
}

/// The process of a probe: as the container's own, but for what it runs, and without a terminal.
pub(super) fn probe_process(spec: &Spec, arguments: Vec<String>) -> Process {
    let mut process = spec.process().clone().expect("a container has a process");
    process.set_args(Some(arguments)).set_terminal(Some(false));
    process
}

fn process(input: &SpecInput<'_>) -> Result<Process, PrepareError> {
    let user = UserBuilder::default()
        .uid(input.user.uid)
        .gid(input.user.gid)
        .additional_gids(input.user.additional_gids.clone())
        .build();
    let process = ProcessBuilder::default()
        .terminal(input.container.tty)
        .user(user.expect("the ids are given"))
        .args(input.arguments.clone())
        .env(input.environment.clone())
        .cwd(&input.working_dir)
        .no_new_privileges(false)
        .rlimits(rlimits(&input.container.ulimits)?)
        .build();
    Ok(process.expect("all parts are given"))
}

fn linux(input: &SpecInput<'_>) -> Linux {
    let mut namespaces: Vec<LinuxNamespace> =
        OWN_NAMESPACES.iter().map(|&kind| namespace(kind, None)).collect();
    if input.own_cgroup_namespace {
        namespaces.push(namespace(LinuxNamespaceType::Cgroup, None));
    }
    let sysctls = NETWORK_SYSCTLS.iter().map(|&(key, value)| (key.to_owned(), value.to_owned()));
    let own_sysctls = input.container.sysctls.iter().map(|(key, value)| (key.clone(), value.clone()));
    LinuxBuilder::default()
        .namespaces(namespaces)
        .cgroups_path(input.cgroup)
        .resources(input.resources.clone())
        .sysctl(sysctls.chain(own_sysctls).collect::<std::collections::HashMap<_, _>>())
        .rootfs_propagation("rprivate")
        .masked_paths(MASKED_PATHS.map(str::to_owned))
        .readonly_paths(READONLY_PATHS.map(str::to_owned))
        .build()
        .expect("all parts are optional")
}

/// Puts the container into the sandbox's network namespace.
pub(super) fn set_network(spec: &mut Spec, netns: PathBuf) {
    let linux = spec.linux_mut().get_or_insert_default();
    let namespaces = linux.namespaces_mut().get_or_insert_default();
    namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Network);
    namespaces.push(namespace(LinuxNamespaceType::Network, Some(netns)));
}

/// Gives the terminal its first size.
pub(super) fn set_console(spec: &mut Spec, ConsoleSize { rows, columns }: ConsoleSize) {
    let size = BoxBuilder::default().height(u64::from(rows)).width(u64::from(columns)).build();
    if let Some(process) = spec.process_mut() {
        process.set_console_size(size.ok());
    }
}

fn namespace(kind: LinuxNamespaceType, path: Option<PathBuf>) -> LinuxNamespace {
    let mut namespace = LinuxNamespaceBuilder::default().typ(kind).build().expect("the kind is given");
    namespace.set_path(path);
    namespace
}
