//! What others take out of a hook is seen at the next look, and put back.

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use aya::programs::links::{FdLink, PinnedLink};
use dataplane_kernel::bpf::{PinDir, has_tcx};
use dataplane_kernel::{Kernel as _, LinuxKernel, LinuxOptions};
use dataplane_model::Op;
use dataplane_model::kernel_state::{Change, Hook, HookMode, HookTarget, LinkName, Program};
use ebpf_abi::ABI_VERSION;

use crate::support::namespace::Namespace;

const PATIENCE: Duration = Duration::from_secs(20);

/// A node with one interface, `up0`, and no other hooks than those of the test.
struct Node {
    namespace: Namespace,
    bpffs_dir: PathBuf,
}

impl Node {
    fn new(name: &str) -> Self {
        let namespace = Namespace::new();
        namespace.ip("link add up0 type veth peer name far0");
        namespace.ip("link set far0 up");
        namespace.ip("link set up0 up");
        let name = format!("meshd-drift-{}-{name}", std::process::id());
        Self { namespace, bpffs_dir: PathBuf::from("/sys/fs/bpf").join(name) }
    }

    /// Runs `work` in the node with its kernel, as one meshd has it.
    fn with_kernel(&self, work: impl AsyncFnOnce(&mut LinuxKernel) + Send) {
        let options = LinuxOptions {
            netns_dir: self.bpffs_dir.join("no sandboxes"),
            uplinks: vec![LinkName::new("up0").unwrap()],
            bpffs_dir: self.bpffs_dir.clone(),
            cgroup2_root: None,
        };
        self.namespace.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { work(&mut LinuxKernel::open(options).unwrap()).await });
        });
    }

    /// Hangs a program, lets `take` have it, and looks before and after it is put back.
    fn check(&self, hook: &Hook, mode: HookMode, take: impl Fn(&Path) + Sync) {
        self.with_kernel(async |kernel| {
            put(kernel, hook, mode).await;
            assert_eq!(seen(kernel).await, [(hook.clone(), mode)], "at first");
            take(&self.pin(hook.program));
            assert_eq!(seen(kernel).await, [], "{hook} by {mode} is gone");
            put(kernel, hook, mode).await;
            assert_eq!(seen(kernel).await, [(hook.clone(), mode)], "put back");
            kernel.apply(&Op::Hook(Change::Delete(hook.clone()))).await.unwrap();
            assert_eq!(seen(kernel).await, [], "removed");
        });
    }

    /// The only pinned hook of a program.
    fn pin(&self, program: Program) -> PathBuf {
        let pins = PinDir::new(&self.bpffs_dir);
        let found = pins.hooks().unwrap().into_iter().find(|pin| pin.program.label() == program.name());
        pins.hook(&found.unwrap())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.bpffs_dir);
    }
}

/// Tried again for a while, as the driver does: a link lives on for a moment after its pin, and keeps its place.
async fn put(kernel: &mut LinuxKernel, hook: &Hook, mode: HookMode) {
    let step = Op::Hook(Change::Put(hook.clone(), mode));
    let started = Instant::now();
    while let Err(error) = kernel.apply(&step).await {
        assert!(started.elapsed() < PATIENCE, "{step}: {error}");
        std::thread::yield_now();
    }
}

async fn seen(kernel: &mut LinuxKernel) -> Vec<(Hook, HookMode)> {
    kernel.observe().await.unwrap().hooks.into_iter().collect()
}

fn on_uplink(program: Program) -> Hook {
    Hook { program, target: HookTarget::Interface(LinkName::new("up0").unwrap()) }
}

/// `BPF_LINK_DETACH`, as `bpftool link detach` does it.
fn detach(pin: &Path) {
    const BPF_OBJ_GET: i32 = 7;
    const BPF_LINK_DETACH: i32 = 34;
    let path = CString::new(pin.to_str().unwrap()).unwrap();
    let call = |command: i32, attribute: [u64; 2]| {
        // SAFETY: the attribute outlives the call, and so does the path that it may point to.
        unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_ptr(), size_of_val(&attribute)) }
    };
    let link = call(BPF_OBJ_GET, [path.as_ptr().addr() as u64, 0]);
    assert!(link >= 0, "{}", std::io::Error::last_os_error());
    let detached = call(BPF_LINK_DETACH, [link.cast_unsigned(), 0]);
    assert_eq!(detached, 0, "{}", std::io::Error::last_os_error());
    nix::unistd::close(i32::try_from(link).unwrap()).unwrap();
}

fn remove(pin: &Path) {
    fs::remove_file(pin).unwrap();
}

#[test]
fn filters_are_put_back() {
    let node = Node::new("clsact");
    let uplink = on_uplink(Program::Uplink);
    let egress = on_uplink(Program::VxlanOut);
    for command in ["tc filter del dev up0 ingress", "tc qdisc del dev up0 clsact"] {
        node.check(&uplink, HookMode::Clsact, |_| node.namespace.sh(command));
    }
    node.check(&egress, HookMode::Clsact, |_| node.namespace.sh("tc filter del dev up0 egress"));
    node.check(&uplink, HookMode::Clsact, remove);
}

/// A filter is ours by what it runs.
#[test]
fn a_filter_that_runs_something_else_is_replaced() {
    let node = Node::new("foreign");
    let hooks =
        [on_uplink(Program::VxlanOut), on_uplink(Program::Uplink)].map(|hook| (hook, HookMode::Clsact));
    node.with_kernel(async |kernel| {
        for (hook, mode) in &hooks {
            put(kernel, hook, *mode).await;
        }
        node.namespace.sh(&format!(
            "tc filter replace dev up0 ingress protocol all prio {:#x} handle {ABI_VERSION:#x} bpf da object-pinned {}",
            0x4d45,
            node.pin(Program::VxlanOut).display()
        ));
        assert_eq!(seen(kernel).await, hooks[..1]);
        put(kernel, &hooks[1].0, HookMode::Clsact).await;
        assert_eq!(seen(kernel).await, hooks);
    });
}

#[test]
fn tc_links_are_put_back() {
    if !has_tcx() {
        println!("skipped: this kernel has no TCX");
        return;
    }
    let node = Node::new("tcx");
    for program in [Program::Uplink, Program::VxlanOut] {
        node.check(&on_uplink(program), HookMode::Tcx, detach);
        node.check(&on_uplink(program), HookMode::Tcx, remove);
    }
}

#[test]
fn xdp_is_put_back() {
    let node = Node::new("xdp");
    let xdp = on_uplink(Program::Xdp);
    for mode in [HookMode::XdpNative, HookMode::XdpGeneric] {
        node.check(&xdp, mode, detach);
        node.check(&xdp, mode, remove);
    }
}

#[test]
fn a_link_is_safe_from_those_who_take_xdp_off() {
    let node = Node::new("xdp-off");
    for mode in [HookMode::XdpNative, HookMode::XdpGeneric] {
        let hook = on_uplink(Program::Xdp);
        node.with_kernel(async |kernel| {
            put(kernel, &hook, mode).await;
            for kind in ["xdp", "xdpdrv", "xdpgeneric"] {
                // Refused, or nothing of this kind is there.
                let _ = Command::new("ip").args(["link", "set", "up0", kind, "off"]).output().unwrap();
            }
            assert_eq!(seen(kernel).await, [(hook.clone(), mode)]);
            let links = Command::new("ip").args(["-d", "link", "show", "up0"]).output().unwrap();
            let links = String::from_utf8(links.stdout).unwrap();
            assert!(links.contains("prog/xdp"), "{mode}: {links}");
        });
    }
}

#[test]
fn socket_programs_are_put_back() {
    let node = Node::new("cgroup");
    for program in Program::OF_SOCKETS {
        let hook = Hook { program, target: HookTarget::CgroupRoot };
        node.check(&hook, HookMode::Cgroup, detach);
        node.check(&hook, HookMode::Cgroup, remove);
    }
}

/// The older version's pins stay until a view is applied, which takes the hook that its XDP program has.
#[test]
fn an_upgrade_takes_xdp_over() {
    let node = Node::new("upgrade");
    let hook = on_uplink(Program::Xdp);
    node.with_kernel(async |kernel| put(kernel, &hook, HookMode::XdpNative).await);
    let link_id = |node: &Node| {
        let link = FdLink::from(PinnedLink::from_pin(node.pin(Program::Xdp)).unwrap());
        link.info().unwrap().id()
    };
    let link = link_id(&node);
    let own = node.bpffs_dir.join(format!("v{ABI_VERSION}"));
    let older = node.bpffs_dir.join("v0");
    fs::rename(&own, &older).unwrap();

    node.with_kernel(async |kernel| {
        kernel.observe().await.unwrap();
        kernel.apply(&Op::Hook(Change::Put(hook.clone(), HookMode::XdpNative))).await.unwrap();
        assert_eq!(link_id(&node), link, "a driver that lets go of XDP loses packets");
        assert!(older.exists(), "its maps and tc programs carry the traffic");
        kernel.settle().unwrap();
        assert!(!older.exists());
        assert_eq!(seen(kernel).await, [(hook.clone(), HookMode::XdpNative)]);
    });
}
