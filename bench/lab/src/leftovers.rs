//! What a run could leave behind on the machine, to be compared before and after.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Result;

/// Programs of ours, or started by us, that must not outlive a run.
const PROGRAMS: [&str; 9] =
    ["meshd", "meshctl", "conmon", "runc", "crun", "whoami", "skopeo", "bench-load", "docker-registry"];

/// A kernel with preloaded iterators pins them when the file system is first mounted (`kernel/bpf/preload`).
const KERNEL_PINS: [&str; 2] = ["maps.debug", "progs.debug"];

/// Everything of ours that exists now, one line each.
pub fn snapshot() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    found.extend(names_in("/run/netns")?.map(|n| format!("namespace {n}")));
    let pins = names_in("/sys/fs/bpf")?.filter(|n| !KERNEL_PINS.contains(&n.as_str()));
    found.extend(pins.map(|n| format!("pin {n}")));
    found.extend(names_in("/run")?.filter(|n| n.starts_with("meshd")).map(|n| format!("directory /run/{n}")));
    found.extend(
        names_in("/var/lib")?.filter(|n| n.starts_with("meshd")).map(|n| format!("directory /var/lib/{n}")),
    );
    for hierarchy in [".", "unified", "memory", "cpu", "pids", "cpuset", "devices", "freezer"] {
        let dir = format!("/sys/fs/cgroup/{hierarchy}");
        found.extend(names_in(&dir)?.filter(|n| n.starts_with("meshd")).map(|n| format!("cgroup {dir}/{n}")));
    }
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let ours = mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|path| path.contains("meshd"));
    found.extend(ours.map(|path| format!("mount {path}")));
    found.extend(processes()?);
    Ok(found)
}

fn names_in(dir: impl AsRef<Path>) -> Result<impl Iterator<Item = String>> {
    let names: Vec<String> = match fs::read_dir(dir) {
        Ok(entries) => entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    Ok(names.into_iter())
}

fn processes() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for pid in names_in("/proc")?.filter(|n| n.bytes().all(|b| b.is_ascii_digit())) {
        if let Ok(name) = fs::read_to_string(format!("/proc/{pid}/comm"))
            && PROGRAMS.contains(&name.trim())
            && !has_ended(&pid)
        {
            found.push(format!("process {pid} {}", name.trim()));
        }
    }
    Ok(found)
}

/// It is a zombie: it has ended, and waits for whoever is its parent now to take note.
fn has_ended(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, fields)| fields.trim_start().starts_with('Z'))
}
