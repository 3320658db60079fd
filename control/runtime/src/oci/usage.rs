//! What a container uses: the counters of its cgroup, in both layouts, and of its interfaces.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use super::cgroup::{CGROUP_ROOT, CgroupLayout};

/// The kernel tells clients of ticks so many per second, whatever its own are.
const TICKS_PER_S: u64 = 100;
const NS_PER_TICK: u64 = 1_000_000_000 / TICKS_PER_S;

/// Counters since its start, unless they are said to be of now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu: CpuUsage,
    pub memory: MemoryUsage,
    /// Processes and threads now.
    pub n_pids: u64,
    /// `None` is no limit.
    pub pids_limit: Option<u64>,
    /// Bytes by device, as (major, minor).
    pub io: BTreeMap<(u64, u64), IoUsage>,
    /// By interface; the loopback one left out.
    pub interfaces: BTreeMap<String, InterfaceUsage>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuUsage {
    pub total_ns: u64,
    pub user_ns: u64,
    pub kernel_ns: u64,
    pub n_periods: u64,
    pub n_throttled: u64,
    pub throttled_ns: u64,
    /// Of the whole host.
    pub host_ns: u64,
    /// Processors of the host.
    pub n_cpus: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryUsage {
    /// Now.
    pub bytes: u64,
    /// Its own, or what the host has.
    pub limit_bytes: u64,
    /// The kernel's own names; of now.
    pub parts: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoUsage {
    pub read_bytes: u64,
    pub written_bytes: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InterfaceUsage {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// Of the container with this cgroup, whose process is `pid`. What a kernel does not count is 0.
pub(super) fn usage(layout: CgroupLayout, cgroup: &str, pid: i32) -> Usage {
    let cgroup = cgroup.trim_start_matches('/');
    let host = Host { stat: text("/proc/stat"), meminfo: text("/proc/meminfo") };
    let mut usage = match layout {
        CgroupLayout::Unified => {
            let dir = Path::new(CGROUP_ROOT).join(cgroup);
            unified(&|file: &str| text(dir.join(file)))
        }
        CgroupLayout::Hybrid => hybrid(&|controller: &str, file: &str| {
            text(Path::new(CGROUP_ROOT).join(controller).join(cgroup).join(file))
        }),
    };
    (usage.cpu.host_ns, usage.cpu.n_cpus) = (host.cpu_ns(), host.n_cpus());
    usage.memory.limit_bytes = usage.memory.limit_bytes.min(host.memory_bytes());
    usage.interfaces = interfaces(&text(format!("/proc/{pid}/net/dev")));
    usage
}

/// Ids of all processes of the cgroup and of those below it, which may go meanwhile.
pub(super) fn processes(layout: CgroupLayout, cgroup: &str) -> io::Result<Vec<i32>> {
    let root = match layout {
        CgroupLayout::Unified => PathBuf::from(CGROUP_ROOT),
        CgroupLayout::Hybrid => Path::new(CGROUP_ROOT).join("pids"),
    };
    let top = root.join(cgroup.trim_start_matches('/'));
    let (mut dirs, mut pids) = (vec![top.clone()], Vec::new());
    while let Some(dir) = dirs.pop() {
        match members(&dir) {
            Ok((own, below)) => {
                pids.extend(own);
                dirs.extend(below);
            }
            Err(error) if dir != top && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(pids)
}

/// Its processes, and the cgroups right below it.
fn members(cgroup: &Path) -> io::Result<(Vec<i32>, Vec<PathBuf>)> {
    let procs = fs::read_to_string(cgroup.join("cgroup.procs"))?;
    let mut below = Vec::new();
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            below.push(entry.path());
        }
    }
    Ok((procs.lines().filter_map(|line| line.parse().ok()).collect(), below))
}

struct Host {
    stat: String,
    meminfo: String,
}

impl Host {
    /// What all processors have done and not done (moby `daemon/stats_unix.go`).
    fn cpu_ns(&self) -> u64 {
        let all = self.stat.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
        all.split_whitespace().take(7).filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>()
            * NS_PER_TICK
    }

    fn n_cpus(&self) -> u64 {
        let is_one = |line: &&str| {
            line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        self.stat.lines().filter(is_one).count() as u64
    }

    fn memory_bytes(&self) -> u64 {
        let total = self.meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib = total.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        kib.map_or(u64::MAX, |kib| kib << 10)
    }
}

fn unified(read: &dyn Fn(&str) -> String) -> Usage {
    let cpu = keyed(&read("cpu.stat"));
    let us = |key: &str| cpu.get(key).copied().unwrap_or(0) * 1000;
    let count = |key: &str| cpu.get(key).copied().unwrap_or(0);
    let mut io: BTreeMap<(u64, u64), IoUsage> = BTreeMap::new();
    for line in read("io.stat").lines() {
        let mut words = line.split_whitespace();
        let Some(device) = words.next().and_then(device) else { continue };
        let counts: BTreeMap<&str, u64> = words
            .filter_map(|word| word.split_once('='))
            .filter_map(|(key, n)| Some((key, n.parse().ok()?)))
            .collect();
        let bytes = |key: &str| counts.get(key).copied().unwrap_or(0);
        io.insert(device, IoUsage { read_bytes: bytes("rbytes"), written_bytes: bytes("wbytes") });
    }
    Usage {
        cpu: CpuUsage {
            total_ns: us("usage_usec"),
            user_ns: us("user_usec"),
            kernel_ns: us("system_usec"),
            n_periods: count("nr_periods"),
            n_throttled: count("nr_throttled"),
            throttled_ns: us("throttled_usec"),
            ..CpuUsage::default()
        },
        memory: MemoryUsage {
            bytes: number(&read("memory.current")),
            limit_bytes: limit(&read("memory.max")).unwrap_or(u64::MAX),
            parts: keyed(&read("memory.stat")),
        },
        n_pids: number(&read("pids.current")),
        pids_limit: limit(&read("pids.max")),
        io,
        interfaces: BTreeMap::new(),
    }
}

fn hybrid(read: &dyn Fn(&str, &str) -> String) -> Usage {
    let (ticks, throttling) = (keyed(&read("cpuacct", "cpuacct.stat")), keyed(&read("cpu", "cpu.stat")));
    let of = |counts: &BTreeMap<String, u64>, key: &str| counts.get(key).copied().unwrap_or(0);
    let mut io: BTreeMap<(u64, u64), IoUsage> = BTreeMap::new();
    for line in read("blkio", "blkio.throttle.io_service_bytes_recursive").lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [at, what, bytes] = words.as_slice() else { continue };
        let (Some(device), Ok(bytes)) = (device(at), bytes.parse::<u64>()) else { continue };
        let counts = io.entry(device).or_default();
        match *what {
            "Read" => counts.read_bytes = bytes,
            "Write" => counts.written_bytes = bytes,
            _ => {}
        }
    }
    Usage {
        cpu: CpuUsage {
            total_ns: number(&read("cpuacct", "cpuacct.usage")),
            user_ns: of(&ticks, "user") * NS_PER_TICK,
            kernel_ns: of(&ticks, "system") * NS_PER_TICK,
            n_periods: of(&throttling, "nr_periods"),
            n_throttled: of(&throttling, "nr_throttled"),
            throttled_ns: of(&throttling, "throttled_time"),
            ..CpuUsage::default()
        },
        memory: MemoryUsage {
            bytes: number(&read("memory", "memory.usage_in_bytes")),
            limit_bytes: limit(&read("memory", "memory.limit_in_bytes")).unwrap_or(u64::MAX),
            parts: keyed(&read("memory", "memory.stat")),
        },
        n_pids: number(&read("pids", "pids.current")),
        pids_limit: limit(&read("pids", "pids.max")),
        io,
        interfaces: BTreeMap::new(),
    }
}

/// Of the kernel's table: a name, eight counts of what came, eight of what went.
fn interfaces(table: &str) -> BTreeMap<String, InterfaceUsage> {
    let row = |line: &str| {
        let (name, counts) = line.split_once(':')?;
        let counts: Vec<u64> = counts.split_whitespace().filter_map(|count| count.parse().ok()).collect();
        let [
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            _,
            _,
            _,
            _,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
            ..,
        ] = counts[..]
        else {
            return None;
        };
        let usage = InterfaceUsage {
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
        };
        Some((name.trim().to_owned(), usage)).filter(|(name, _)| name != "lo")
    };
    table.lines().filter_map(row).collect()
}

/// A file of the kernel's; empty if it has none.
fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// `max` and nothing are none.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// `8:16`.
fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Lines of `key value`.
fn keyed(text: &str) -> BTreeMap<String, u64> {
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_one_tree() {
        let usage = unified(&|file: &str| {
            match file {
                "cpu.stat" => "usage_usec 9\nuser_usec 5\nsystem_usec 4\nnr_periods 3\nnr_throttled 2\nthrottled_usec 1\n",
                "memory.current" => "4096\n",
                "memory.max" | "pids.max" => "max\n",
                "memory.stat" => "anon 100\nfile 200\ninactive_file 50\n",
                "pids.current" => "7\n",
                "io.stat" => "8:0 rbytes=10 wbytes=20 rios=1 wios=2\n7:1\n",
                other => panic!("{other}"),
            }
            .to_owned()
        });
        let cpu = CpuUsage {
            total_ns: 9000,
            user_ns: 5000,
            kernel_ns: 4000,
            n_periods: 3,
            n_throttled: 2,
            throttled_ns: 1000,
            ..CpuUsage::default()
        };
        assert_eq!(usage.cpu, cpu);
        assert_eq!((usage.memory.bytes, usage.memory.limit_bytes), (4096, u64::MAX));
        assert_eq!(usage.memory.parts["inactive_file"], 50);
        assert_eq!((usage.n_pids, usage.pids_limit), (7, None));
        assert_eq!(usage.io[&(8, 0)], IoUsage { read_bytes: 10, written_bytes: 20 });
    }

    #[test]
    fn counters_of_a_tree_per_controller() {
        let usage = hybrid(&|controller: &str, file: &str| {
            match (controller, file) {
                ("cpuacct", "cpuacct.usage") => "77\n",
                ("cpuacct", "cpuacct.stat") => "user 3\nsystem 4\n",
                ("cpu", _) => "nr_periods 1\nnr_throttled 0\nthrottled_time 5\n",
                ("memory", "memory.stat") => "cache 1\ntotal_inactive_file 60\n",
                ("memory", "memory.usage_in_bytes") => "8192\n",
                ("memory", _) => "16384\n",
                ("pids", "pids.current") => "2\n",
                ("pids", _) => "100\n",
                ("blkio", _) => "8:0 Read 10\n8:0 Write 20\n8:0 Sync 30\nTotal 30\n",
                other => panic!("{other:?}"),
            }
            .to_owned()
        });
        assert_eq!((usage.cpu.total_ns, usage.cpu.user_ns, usage.cpu.throttled_ns), (77, 30_000_000, 5));
        assert_eq!((usage.memory.bytes, usage.memory.limit_bytes), (8192, 16384));
        assert_eq!((usage.n_pids, usage.pids_limit), (2, Some(100)));
        assert_eq!(usage.io[&(8, 0)], IoUsage { read_bytes: 10, written_bytes: 20 });
    }

    #[test]
    fn the_host_and_its_interfaces() {
        let host = Host {
            stat: "cpu  1 2 3 4 5 6 7 8 9 9\ncpu0 1\ncpu1 1\nctxt 7\n".into(),
            meminfo: "MemTotal:  4 kB\n".into(),
        };
        assert_eq!((host.cpu_ns(), host.n_cpus(), host.memory_bytes()), (280_000_000, 2, 4096));
        let table = "Inter-| Receive | Transmit\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  \
                     eth0: 10 2 3 4 0 0 0 0 50 6 7 8 0 0 0 0\n";
        let all = interfaces(table);
        assert_eq!(all.len(), 1);
        let eth0 = all["eth0"];
        assert_eq!((eth0.rx_bytes, eth0.rx_dropped, eth0.tx_bytes, eth0.tx_dropped), (10, 4, 50, 8));
    }
}
