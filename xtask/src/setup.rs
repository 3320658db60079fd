//! What a fresh Debian 12 with rustup's Rust lacks, installed. Quick when it is all there.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::sh::{on_path, show};

/// The linker for BPF objects. Its LLVM must be rustc's own: one that is newer or older refuses the bitcode.
const BPF_LINKER: (&str, &str) = ("bpf-linker", "0.13.0");
/// Checks licences, bans and sources of all dependencies.
const CARGO_DENY: (&str, &str) = ("cargo-deny", "0.20.2");
/// While this file says 101, Debian's packages start no services (`invoke-rc.d(8)`).
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// What docker-py and its dependencies are, for pip, below the checkout's root.
const PYTHON_PACKAGES: &str = "control/api/tests/ecosystem/requirements.txt";
/// Debian's, whatever else the path has.
const PYTHON: &str = "/usr/bin/python3";

/// Debian package, a file that it brings, and what it is for.
type Package = (&'static str, &'static str, &'static str);

const RUN_PACKAGES: &[Package] = &[
    ("gcc", "/usr/bin/gcc", "links Rust programs"),
    ("libc6-dev", "/usr/include/stdio.h", "links Rust programs"),
    ("ca-certificates", "/etc/ssl/certs/ca-certificates.crt", "registries by HTTPS"),
    ("iproute2", "/usr/sbin/ip", "makes the lab's namespaces"),
    ("nftables", "/usr/sbin/nft", "masquerades the way out"),
    ("runc", "/usr/sbin/runc", "runs containers"),
    ("conmon", "/usr/bin/conmon", "keeps containers' output and exit codes"),
    ("skopeo", "/usr/bin/skopeo", "pulls and loads images"),
    ("umoci", "/usr/bin/umoci", "unpacks images"),
    ("curl", "/usr/bin/curl", "the demo's client"),
    ("docker.io", "/usr/sbin/dockerd", "the docker command line (its daemon is not started)"),
];

const TEST_PACKAGES: &[Package] = &[
    ("crun", "/usr/bin/crun", "the other container runtime"),
    ("busybox-static", "/bin/busybox", "small test images"),
    ("docker-registry", "/usr/bin/docker-registry", "a registry to pull from"),
    ("ethtool", "/usr/sbin/ethtool", "offload settings in XDP tests"),
    ("libfaketime", "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1", "clocks that jump"),
    ("strace", "/usr/bin/strace", "disks that are slow"),
    ("procps", "/usr/bin/ps", "looks for processes left behind"),
    (
        "redis-server",
        "/usr/bin/redis-server",
        "packed into an image of the test stacks (no service is started)",
    ),
    ("postgresql-15", "/usr/lib/postgresql/15/bin/postgres", "another (no service is started)"),
    ("prometheus", "/usr/bin/prometheus", "discovers services, tasks and nodes by the API"),
    (
        "python3-pip",
        "/usr/lib/python3/dist-packages/pip/__main__.py",
        "installs docker-py, which drives the daemon",
    ),
];

const PICTURE_PACKAGES: &[Package] = &[
    ("chromium-headless-shell", "/usr/bin/chromium-headless-shell", "takes pictures of pages"),
    ("fonts-inter", "/usr/share/fonts/opentype/inter/Inter-Regular.otf", "their letters"),
];

const GUEST_PACKAGES: &[Package] = &[
    ("qemu-system-x86", "/usr/bin/qemu-system-x86_64", "runs the test guest"),
    ("mmdebstrap", "/usr/bin/mmdebstrap", "makes the guest's root"),
    ("e2fsprogs", "/usr/sbin/mke2fs", "makes the guest's disk"),
    ("cpio", "/usr/bin/cpio", "makes the guest's first disk"),
    ("kmod", "/usr/sbin/modprobe", "finds the guest's modules"),
];

const BENCH_PACKAGES: &[Package] = &[
    ("wrk", "/usr/bin/wrk", "HTTP load"),
    ("iperf3", "/usr/bin/iperf3", "bulk streams"),
    ("nginx-light", "/usr/sbin/nginx", "a peer's web server"),
    ("haproxy", "/usr/sbin/haproxy", "a peer load balancer"),
    ("dnsmasq-base", "/usr/sbin/dnsmasq", "a peer name server"),
    ("unbound", "/usr/sbin/unbound", "another"),
    ("etcd-server", "/usr/bin/etcd", "a peer's replicated log"),
    ("dnsperf", "/usr/bin/dnsperf", "DNS load"),
];

/// How much is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// To build and to run a cluster.
    Demo,
    /// And to test.
    Test,
    /// To test, and to take pictures of pages.
    Pictures,
    /// To test, also in the virtual machine.
    Guest,
    /// To test and to measure.
    Everything,
}

/// Installs what is missing, says what, and says nothing when nothing is.
pub fn run(scope: Scope) -> Result<()> {
    ensure!(is_root(), "run this as root: it makes network namespaces and loads BPF programs");
    let mut packages = RUN_PACKAGES.to_vec();
    if scope != Scope::Demo {
        packages.extend(TEST_PACKAGES);
    }
    if scope == Scope::Pictures {
        packages.extend(PICTURE_PACKAGES);
    }
    if scope == Scope::Guest {
        packages.extend(GUEST_PACKAGES);
    }
    if scope == Scope::Everything {
        packages.extend(BENCH_PACKAGES);
    }
    install_packages(&packages)?;
    add_rust_src()?;
    install_bpf_linker()?;
    if scope != Scope::Demo {
        install_cargo_deny()?;
        install_python_packages()?;
    }
    Ok(())
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}

fn install_packages(packages: &[Package]) -> Result<()> {
    let missing: Vec<&Package> = packages.iter().filter(|(_, file, _)| !Path::new(file).exists()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for (package, _, why) in &missing {
        println!("set-up: Debian package {package}: {why}");
    }
    let names: Vec<&str> = missing.iter().map(|(package, _, _)| *package).collect();
    let _quiet = ServicesStayOff::begin()?;
    show(Command::new("apt-get").args(["update", "-qq"]))?;
    show(
        Command::new("apt-get")
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(&names)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdout(std::process::Stdio::null()),
    )?;
    disable_services(&names)
}

/// Keeps package scripts from starting what they install; undone when dropped.
struct ServicesStayOff {
    ours: bool,
}

impl ServicesStayOff {
    fn begin() -> Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { ours: false });
        }
        fs::write(POLICY, "#!/bin/sh\nexit 101\n").with_context(|| format!("can't write {POLICY}"))?;
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))?;
        Ok(Self { ours: true })
    }
}

impl Drop for ServicesStayOff {
    fn drop(&mut self) {
        if self.ours && fs::remove_file(POLICY).is_err() {
            eprintln!("set-up: {POLICY} could not be removed; do it by hand");
        }
    }
}

/// Services that came with packages installed just now do not start at the next boot either.
fn disable_services(installed: &[&str]) -> Result<()> {
    if !Path::new("/run/systemd/system").exists() {
        return Ok(());
    }
    let units = installed.iter().flat_map(|package| match *package {
        "docker.io" => &["docker.service", "docker.socket", "containerd.service"][..],
        "docker-registry" => &["docker-registry.service"],
        "redis-server" => &["redis-server.service"],
        "postgresql-15" => &["postgresql.service"],
        "nginx-light" => &["nginx.service"],
        "haproxy" => &["haproxy.service"],
        "unbound" => &["unbound.service"],
        "prometheus" => &["prometheus.service"],
        _ => &[],
    });
    for unit in units {
        show(Command::new("systemctl").args(["--quiet", "disable", unit]))?;
    }
    Ok(())
}

fn add_rust_src() -> Result<()> {
    if sysroot()?.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists() {
        return Ok(());
    }
    println!("set-up: rust-src: the core library's source, to compile it for BPF");
    show(Command::new("rustup").args(["component", "add", "rust-src"]).current_dir(crate::sh::root()))
}

fn install_bpf_linker() -> Result<()> {
    let (name, version) = BPF_LINKER;
    if on_path(name) {
        return Ok(());
    }
    println!("set-up: {name} {version}: links BPF objects (takes about a minute)");
    let sysroot = sysroot()?;
    let llvm = fs::read_dir(sysroot.join("lib"))?
        .flatten()
        .map(|e| e.path())
        .find(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("libLLVM.so.")))
        .context("this Rust ships no libLLVM.so; use rustup's")?;
    // bpf-linker's build looks for <prefix>/lib/libLLVM.so: give it rustc's own under that name.
    let prefix = std::env::temp_dir().join(format!("mesh-llvm-{}", std::process::id()));
    fs::create_dir_all(prefix.join("lib"))?;
    symlink(&llvm, prefix.join("lib/libLLVM.so"))?;
    let flags = format!(
        "-L {} -C link-arg=-Wl,-rpath,{}",
        prefix.join("lib").display(),
        sysroot.join("lib").display()
    );
    let installed = show(
        install_command(name, version)
            .args(["--no-default-features", "--features", "llvm-22"])
            .env("LLVM_PREFIX", &prefix)
            .env("LLVM_SYS_221_PREFIX", &prefix)
            .env("RUSTFLAGS", flags),
    );
    fs::remove_dir_all(&prefix)?;
    installed
}

fn install_cargo_deny() -> Result<()> {
    let (name, version) = CARGO_DENY;
    if on_path(name) {
        return Ok(());
    }
    println!("set-up: {name} {version}: checks licences and sources of dependencies (takes a few minutes)");
    show(
        install_command(name, version)
            .arg("--no-default-features")
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
    )
}

/// Into the target directory, where the tests look for them. What is there is of the list beside it, or none.
fn install_python_packages() -> Result<()> {
    let wanted = crate::sh::root().join(PYTHON_PACKAGES);
    let dir = crate::sh::target_dir().join("python");
    let installed = dir.join("requirements.txt");
    if fs::read(&installed).is_ok_and(|list| fs::read(&wanted).is_ok_and(|wanted| list == wanted)) {
        return Ok(());
    }
    println!("set-up: docker-py: drives the daemon in tests");
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    show(
        Command::new(PYTHON)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"])
            .args(["--require-hashes", "--only-binary", ":all:", "--root-user-action", "ignore"])
            .arg("--target")
            .arg(&dir)
            .arg("--requirement")
            .arg(&wanted),
    )?;
    fs::copy(&wanted, &installed)?;
    Ok(())
}

fn install_command(name: &str, version: &str) -> Command {
    let mut command = crate::sh::cargo_command();
    command.args(["install", "--quiet", "--locked", name, "--version", &format!("={version}")]);
    command.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS");
    command
}

fn sysroot() -> Result<PathBuf> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
    let output = Command::new(rustc)
        .args(["--print", "sysroot"])
        .current_dir(crate::sh::root())
        .output()
        .context("no rustc")?;
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}
