//! What a container may not do: capabilities, masked paths, system calls. Docker's defaults.

use std::collections::BTreeSet;

use oci_spec::runtime::{
    Arch, Capability, LinuxCapabilities, LinuxCapabilitiesBuilder, LinuxSeccomp, LinuxSeccompAction,
    LinuxSeccompArgBuilder, LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

/// Docker's default set.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Every capability, for `ALL` (capabilities(7)).
const ALL_CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

pub(super) const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

pub(super) const READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// System calls that Docker's profile keeps from every container ("Significant syscalls blocked by the default
/// profile"), each with the capability that gives it back.
const GUARDED_SYSCALLS: [(&str, &[&str]); 10] = [
    (
        "SYS_ADMIN",
        &[
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "pivot_root",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "swapoff",
            "swapon",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    ("BPF", &["bpf"]),
    ("PERFMON", &["perf_event_open"]),
    ("SYS_BOOT", &["kexec_file_load", "kexec_load", "reboot"]),
    ("SYS_MODULE", &["create_module", "delete_module", "finit_module", "init_module", "query_module"]),
    ("SYS_PACCT", &["acct"]),
    ("SYS_RAWIO", &["ioperm", "iopl"]),
    (
        "SYS_TIME",
        &["clock_adjtime", "clock_adjtime64", "clock_settime", "clock_settime64", "settimeofday", "stime"],
    ),
    ("SYS_NICE", &["get_mempolicy", "mbind", "move_pages", "set_mempolicy"]),
    ("DAC_READ_SEARCH", &["open_by_handle_at"]),
];

/// System calls that no capability gives back.
const FORBIDDEN_SYSCALLS: [&str; 17] = [
    "_sysctl",
    "add_key",
    "get_kernel_syms",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "keyctl",
    "nfsservctl",
    "personality",
    "request_key",
    "sysfs",
    "uselib",
    "userfaultfd",
    "ustat",
    "vm86",
    "vm86old",
    "vserver",
];

/// `clone(2)` flags that make a namespace.
const NAMESPACE_FLAGS: [i32; 7] = [
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWUTS,
];

/// A capability name that does not exist. Docker's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid CapAdd or CapDrop: unknown capability: \"CAP_{0}\"")]
pub(crate) struct UnknownCapability(String);

/// The capabilities of a container, without their `CAP_`.
pub(super) fn capability_names(
    add: &[String],
    drop: &[String],
) -> Result<BTreeSet<&'static str>, UnknownCapability> {
    let (add, drop) = (normalised(add)?, normalised(drop)?);
    let (add_all, drop_all) = (add.contains("ALL"), drop.contains("ALL"));
    let mut set: BTreeSet<&str> = match (add_all, drop_all) {
        (true, _) => ALL_CAPABILITIES.into(),
        (false, true) => BTreeSet::new(),
        (false, false) => DEFAULT_CAPABILITIES.into(),
    };
    if !drop_all {
        set.retain(|name| !drop.contains(name));
    }
    set.extend(add.into_iter().filter(|&name| name != "ALL"));
    Ok(set)
}

fn normalised(names: &[String]) -> Result<BTreeSet<&'static str>, UnknownCapability> {
    let one = |name: &String| {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if bare == "ALL" {
            return Ok("ALL");
        }
        ALL_CAPABILITIES
            .into_iter()
            .find(|known| *known == bare)
            .ok_or_else(|| UnknownCapability(bare.to_owned()))
    };
    names.iter().map(one).collect()
}

/// The sets for the runtime. Nothing is inheritable or ambient, so a process that is not root has none after exec.
pub(super) fn capabilities(names: &BTreeSet<&str>) -> LinuxCapabilities {
    let set =
        || names.iter().map(|name| name.parse::<Capability>().expect("the table has real names")).collect();
    let sets: [std::collections::HashSet<Capability>; 3] = [set(), set(), set()];
    let [bounding, effective, permitted] = sets;
    LinuxCapabilitiesBuilder::default()
        .bounding(bounding)
        .effective(effective)
        .permitted(permitted)
        .inheritable(std::collections::HashSet::new())
        .ambient(std::collections::HashSet::new())
        .build()
        .expect("all sets are given")
}

/// The system call filter. A deny list of what Docker's default profile is known for refusing, where Docker has an allow
/// list: a system call in neither table, or newer than them, is allowed here. `personality` is refused whole, while
/// Docker allows a few harmless values.
pub(super) fn seccomp(capabilities: &BTreeSet<&str>) -> LinuxSeccomp {
    let guarded = GUARDED_SYSCALLS.iter().filter(|(capability, _)| {
        // Of old SYS_ADMIN stood for what BPF and PERFMON split off from it.
        let heir = matches!(*capability, "BPF" | "PERFMON") && capabilities.contains("SYS_ADMIN");
        !capabilities.contains(capability) && !heir
    });
    let names = guarded.flat_map(|(_, names)| names.iter().copied()).chain(FORBIDDEN_SYSCALLS);
    let mut rules = vec![refuse(names.map(str::to_owned).collect(), libc::EPERM)];
    if !capabilities.contains("SYS_ADMIN") {
        // The flags of clone3 are behind a pointer, which no filter can read: "not there" makes libc use clone.
        rules.push(refuse(vec!["clone3".to_owned()], libc::ENOSYS));
        rules.extend(NAMESPACE_FLAGS.map(refuse_clone_with));
    }
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActAllow)
        .architectures(architectures())
        .syscalls(rules)
        .build()
        .expect("the default action is given")
}

fn refuse(names: Vec<String>, errno: i32) -> LinuxSyscall {
    LinuxSyscallBuilder::default()
        .names(names)
        .action(LinuxSeccompAction::ScmpActErrno)
        .errno_ret(errno.cast_unsigned())
        .build()
        .expect("names and action are given")
}

fn refuse_clone_with(flag: i32) -> LinuxSyscall {
    let bit = u64::from(flag.cast_unsigned());
    let flag_is_set = LinuxSeccompArgBuilder::default()
        .index(0_usize)
        .value(bit)
        .value_two(bit)
        .op(LinuxSeccompOperator::ScmpCmpMaskedEq)
        .build()
        .expect("all parts are given");
    let mut rule = refuse(vec!["clone".to_owned()], libc::EPERM);
    rule.set_args(Some(vec![flag_is_set]));
    rule
}

fn architectures() -> Vec<Arch> {
    if cfg!(target_arch = "x86_64") {
        vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]
    } else {
        vec![Arch::ScmpArchNative]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(add: &[&str], drop: &[&str]) -> Result<Vec<&'static str>, UnknownCapability> {
        let owned = |all: &[&str]| all.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        capability_names(&owned(add), &owned(drop)).map(|set| set.into_iter().collect())
    }

    #[test]
    fn adding_and_dropping_follow_docker() {
        assert_eq!(names(&[], &[]).expect("valid").len(), DEFAULT_CAPABILITIES.len());
        assert_eq!(names(&["cap_net_admin"], &["ALL"]), Ok(vec!["NET_ADMIN"]));
        let all_but_one = names(&["ALL"], &["SYS_ADMIN"]).expect("valid");
        assert_eq!(all_but_one.len(), ALL_CAPABILITIES.len() - 1);
        let error = names(&["x"], &[]).expect_err("unknown");
        assert_eq!(error.to_string(), "invalid CapAdd or CapDrop: unknown capability: \"CAP_X\"");
    }

    #[test]
    fn every_name_is_known_to_the_runtime() {
        let sets = capabilities(&ALL_CAPABILITIES.into());
        assert_eq!(
            sets.bounding().as_ref().map(std::collections::HashSet::len),
            Some(ALL_CAPABILITIES.len())
        );
    }

    #[test]
    fn a_capability_gives_its_system_calls_back() {
        let denied = |names: &[&'static str]| {
            let filter = seccomp(&names.iter().copied().collect());
            filter.syscalls().as_ref().expect("some are denied")[0].names().clone()
        };
        assert!(denied(&[]).contains(&"mount".to_owned()));
        assert!(!denied(&["SYS_ADMIN"]).contains(&"mount".to_owned()));
        assert!(!denied(&["SYS_ADMIN"]).contains(&"bpf".to_owned()));
        assert!(denied(&["SYS_ADMIN"]).contains(&"keyctl".to_owned()));
    }
}
