//! An executor in directories of its own, an image made of one static program, and a sandbox.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use control_model::executor::{Executor, Provisions, SandboxPaths};
use control_model::log_driver::LogDriver;
use control_model::object::{ContainerStatus, Slot};
use control_model::spec::{ContainerSpec, TaskSpec};
use control_model::{NodeId, ServiceId, Task, TaskId};
use control_runtime::image::{ImageChanges, Reference};
use control_runtime::{Oci, OciOptions};

/// Longest wait for anything in these tests; far above what a loaded machine needs.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// A node: an executor, a sandbox, and all that must be gone after the test.
pub struct TestNode {
    pub dir: tempfile::TempDir,
    pub oci: Oci,
    pub sandbox: SandboxPaths,
    pub cgroup_parent: String,
    insecure_registries: BTreeSet<String>,
}

impl TestNode {
    pub fn new(runtime: &str, insecure_registries: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let name = unique_name();
        let cgroup_parent = format!("/{name}");
        let netns = Path::new("/run/netns").join(&name);
        let made = Command::new("ip").args(["netns", "add", &name]).status().expect("ip runs");
        assert!(made.success(), "a network namespace");
        let insecure_registries: BTreeSet<String> =
            insecure_registries.iter().map(|&registry| registry.to_owned()).collect();
        let oci = open(dir.path(), &cgroup_parent, runtime, insecure_registries.clone());
        Self { dir, oci, sandbox: SandboxPaths { netns }, cgroup_parent, insecure_registries }
    }

    /// As a daemon that was killed and started again.
    pub fn reopen(&mut self, runtime: &str) {
        self.oci = open(self.dir.path(), &self.cgroup_parent, runtime, self.insecure_registries.clone());
    }

    pub async fn import(&self, name: &str, changes: &[&str]) {
        let tar = rootfs_tar();
        let changes = ImageChanges::parse(changes.iter().copied()).expect("valid changes");
        let name = Reference::parse(name).expect("a valid name");
        let mut stream = tar.as_slice();
        self.oci.images().import(&mut stream, Some(&name), &changes, "test").await.expect("imported");
    }

    /// Prepares and starts.
    pub async fn run(&self, task: &Task) -> ContainerStatus {
        self.oci.prepare(task, &Provisions::default()).await.expect("prepared");
        self.oci.start(task, &self.sandbox).await.expect("started")
    }

    /// Runs to the end; gives the exit code and the output lines of both streams.
    pub async fn output(&self, task: &Task) -> (i32, Vec<String>) {
        self.run(task).await;
        let exit =
            tokio::time::timeout(PATIENCE, self.oci.wait(task.id)).await.expect("ends").expect("waited");
        (exit.code, self.log(task))
    }

    pub fn log(&self, task: &Task) -> Vec<String> {
        let info = self.oci.container_of_task(task.id).expect("known");
        let text = std::fs::read_to_string(info.log).unwrap_or_default();
        let texts = text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default());
        // An empty record is how conmon ends a line that came in parts.
        texts.filter(|text| !text.is_empty()).map(str::to_owned).collect()
    }

    /// Waits until the task has printed the line.
    pub async fn line(&self, task: &Task, line: &str) {
        let printed = async {
            while !self.log(task).iter().any(|one| one == line) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, printed)
            .await
            .unwrap_or_else(|_| panic!("{line:?} in {:?}", self.log(task)));
    }

    /// Nothing of the node's tasks is left in the kernel or on disk.
    pub fn assert_clean(&self) {
        let dir = self.dir.path().display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("readable");
        assert!(!mounts.contains(&dir), "mounts left");
        for part in ["state/tasks", "run/tasks", "run/oci"] {
            let entries = std::fs::read_dir(self.dir.path().join(part)).into_iter().flatten().flatten();
            let left: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
            assert!(left.is_empty(), "left: {left:?}");
        }
        for parent in cgroup_dirs(&self.cgroup_parent) {
            let entries = std::fs::read_dir(&parent).expect("readable").flatten();
            let left: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
            assert!(left.is_empty(), "cgroups left: {left:?}");
        }
    }
}

impl Drop for TestNode {
    /// Also after a failed assertion: containers, mounts, cgroups and the namespace go.
    fn drop(&mut self) {
        let runtime_root = self.dir.path().join("run/oci");
        for entry in std::fs::read_dir(&runtime_root).into_iter().flatten().flatten() {
            let id = entry.file_name();
            let _ = Command::new("runc")
                .arg("--root")
                .arg(&runtime_root)
                .args(["delete", "--force"])
                .arg(id)
                .status();
        }
        for entry in std::fs::read_dir(self.dir.path().join("state/tasks")).into_iter().flatten().flatten() {
            let _ =
                Command::new("umount").arg("--quiet").arg("--lazy").arg(entry.path().join("rootfs")).status();
        }
        for entry in std::fs::read_dir(self.dir.path().join("run/tasks")).into_iter().flatten().flatten() {
            let _ = Command::new("umount")
                .args(["--quiet", "--lazy"])
                .arg(entry.path().join("dependencies"))
                .status();
        }
        for dir in cgroup_dirs(&self.cgroup_parent) {
            let _ = std::fs::remove_dir(dir);
        }
        let name = self.sandbox.netns.file_name().expect("it has a name");
        let _ = Command::new("ip").args(["netns", "del"]).arg(name).status();
    }
}

fn open(dir: &Path, cgroup_parent: &str, runtime: &str, insecure_registries: BTreeSet<String>) -> Oci {
    Oci::open(OciOptions {
        state_dir: dir.join("state"),
        run_dir: dir.join("run"),
        cgroup_parent: cgroup_parent.to_owned(),
        runtime: PathBuf::from(runtime),
        insecure_registries,
        node_hostname: "test-node".into(),
        log: LogDriver::default(),
    })
    .expect("opened")
}

fn unique_name() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    format!("rt-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// The directories that a cgroup path has, in one tree or in several.
pub fn cgroup_dirs(path: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let bare = path.trim_start_matches('/');
    let trees = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    let trees = trees.filter(|tree| !tree.is_symlink()).chain([root.to_owned()]);
    trees.map(|tree| tree.join(bare)).filter(|dir| dir.is_dir()).collect()
}

/// The tests' image: `/toolbox`, users, a directory with a file, a temporary directory.
fn rootfs_tar() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, mode: u32, content: Option<&[u8]>| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_entry_type(if content.is_some() {
            tar::EntryType::Regular
        } else {
            tar::EntryType::Directory
        });
        header.set_size(content.map_or(0, |bytes| bytes.len() as u64));
        tar.append_data(&mut header, path, content.unwrap_or_default()).expect("written to memory");
    };
    add("tmp/", 0o1777, None);
    add("etc/", 0o755, None);
    add("etc/passwd", 0o644, Some(b"root:x:0:0::/:/none\nweb:x:33:33::/:/none\n"));
    add("etc/group", 0o644, Some(b"root:x:0:\nweb:x:33:\n"));
    add("data/", 0o755, None);
    add("data/seed", 0o644, Some(b"from the image\n"));
    add("toolbox", 0o755, Some(&std::fs::read(toolbox()).expect("compiled")));
    tar.into_inner().expect("written to memory")
}

/// The static program, compiled once per test process.
fn toolbox() -> &'static Path {
    static BUILT: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    BUILT.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/runtime/toolbox.rs");
        let binary =
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("toolbox-{}", std::process::id()));
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let mut command = Command::new(rustc);
        command.args(["--edition", "2024", "-C", "target-feature=+crt-static", "-C", "strip=symbols", "-o"]);
        let built = command.arg(&binary).arg(source).status().expect("rustc runs");
        assert!(built.success(), "the toolbox compiles");
        // One name for all runs, so that they don't pile up.
        let kept = binary.with_file_name("toolbox");
        std::fs::rename(binary, &kept).expect("renamed");
        kept
    })
}

/// A task that runs `toolbox <arguments>` from the image.
pub fn task(image: &str, arguments: &[&str]) -> Task {
    static COUNTER: AtomicU64 = AtomicU64::new(1);
    let number = u128::from(COUNTER.fetch_add(1, Ordering::Relaxed));
    let container = ContainerSpec {
        image: image.to_owned(),
        args: arguments.iter().map(|&argument| argument.to_owned()).collect(),
        ..ContainerSpec::default()
    };
    Task {
        service_name: "web".into(),
        node: Some(NodeId::from_bits(9)),
        spec: TaskSpec { container, ..TaskSpec::default() }.into(),
        spec_version: 1,
        ..Task::new(
            TaskId::from_bits((u128::from(std::process::id()) << 64) | number),
            ServiceId::from_bits(7),
            Slot::Replica(1),
        )
    }
}
