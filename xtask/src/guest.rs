//! A virtual machine with Debian 12's own kernel (6.1, cgroup v2, ESP, no TCX), built from Debian's packages, for
//! what the machine at hand can't show. Emulated where there is no KVM: slow, so it runs chosen suites only.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use bench_lab::run;

use crate::sh::{show, target_dir};

/// What the guest has besides Debian's minimum.
const PACKAGES: &str = "linux-image-amd64,runc,crun,conmon,skopeo,umoci,nftables,iproute2,curl,docker.io,\
    docker-registry,busybox-static,kmod,procps,ethtool,ca-certificates,wrk,nginx-light,ipvsadm,iptables,apparmor-";
/// Modules that the root disk and the share need before the root is there.
const BOOT_MODULES: [&str; 5] = ["virtio_pci", "virtio_blk", "ext4", "9pnet_virtio", "9p"];
const INIT: &str = include_str!("../guest/init.sh");
const INITRD_INIT: &str = include_str!("../guest/initrd.sh");
const DISK_SIZE: &str = "6G";
const MEMORY: &str = "6G";
/// A guest that hangs is ended after this.
const LIMIT_S: &str = "3000";

/// A built guest.
pub struct Guest {
    dir: PathBuf,
}

impl Guest {
    /// Builds the disk, unless it is there and of the same making.
    pub fn build() -> Result<Self> {
        let guest = Self { dir: target_dir().join("guest") };
        let recipe = format!("{PACKAGES}{INIT}{INITRD_INIT}{DISK_SIZE}");
        let recipe_file = guest.dir.join("recipe");
        if fs::read_to_string(&recipe_file).is_ok_and(|built| built == recipe) {
            return Ok(guest);
        }
        println!("set-up: the test guest: Debian 12 with its own kernel (takes a few minutes)");
        fs::create_dir_all(guest.dir.join("share"))?;
        guest.make_root()?;
        guest.make_initrd()?;
        guest.make_disk()?;
        fs::write(recipe_file, recipe)?;
        Ok(guest)
    }

    /// The directory that the guest sees as `/share`.
    pub fn share(&self) -> PathBuf {
        self.dir.join("share")
    }

    /// Boots, runs `script` as `/share/run.sh`, shows what it prints; an error if the script fails.
    pub fn run(&self, script: &str) -> Result<()> {
        let status_file = self.share().join("status");
        if status_file.exists() {
            fs::remove_file(&status_file)?;
        }
        fs::write(self.share().join("run.sh"), script)?;
        let accelerator =
            if fs::File::options().read(true).write(true).open("/dev/kvm").is_ok() && kvm_works() {
                "kvm"
            } else {
                "tcg,thread=multi"
            };
        let share =
            format!("local,path={},mount_tag=share,security_model=none,id=share", self.share().display());
        let disk = format!("file={},format=raw,if=virtio,cache=unsafe,snapshot=on", self.disk().display());
        show(
            Command::new("timeout")
                .args(["--foreground", LIMIT_S, "qemu-system-x86_64", "-accel", accelerator, "-cpu", "max"])
                .args(["-smp", "2", "-m", MEMORY, "-nographic", "-no-reboot", "-nic", "none"])
                .arg("-kernel")
                .arg(self.kernel()?)
                .arg("-initrd")
                .arg(self.initrd())
                .args(["-append", "console=ttyS0 panic=-1 quiet", "-drive", &disk, "-virtfs", &share])
                .stdin(std::process::Stdio::null()),
        )?;
        let status = fs::read_to_string(status_file).context("the guest ended without a word")?;
        ensure!(status.trim() == "0", "the guest's script ended with {}", status.trim());
        Ok(())
    }

    fn make_root(&self) -> Result<()> {
        let root = self.root();
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        show(
            Command::new("mmdebstrap")
                .args(["--quiet", "--variant=minbase", "--aptopt=Apt::Install-Recommends \"false\""])
                .arg(format!("--include={PACKAGES}"))
                .arg("bookworm")
                .arg(&root)
                .args(sources()?),
        )?;
        fs::write(root.join("mesh-init"), INIT)?;
        make_executable(&root.join("mesh-init"))?;
        fs::write(root.join("etc/hosts"), "127.0.0.1 localhost mesh-guest\n")?;
        Ok(())
    }

    fn make_initrd(&self) -> Result<()> {
        let staging = self.dir.join("initrd");
        if staging.exists() {
            fs::remove_dir_all(&staging)?;
        }
        for dir in ["bin", "modules", "proc", "sys", "dev", "new"] {
            fs::create_dir_all(staging.join(dir))?;
        }
        fs::copy(self.root().join("bin/busybox"), staging.join("bin/busybox"))?;
        fs::write(staging.join("init"), INITRD_INIT)?;
        make_executable(&staging.join("init"))?;
        let root = self.root().to_string_lossy().into_owned();
        let release = self.release()?;
        let mut order: Vec<String> = Vec::new();
        for module in BOOT_MODULES {
            let files = run("modprobe", &["-d", &root, "-S", &release, "--show-depends", module])?;
            for file in files.lines().filter_map(|l| l.strip_prefix("insmod ")).map(str::trim) {
                let name = Path::new(file)
                    .file_name()
                    .context("a module without a name")?
                    .to_string_lossy()
                    .into_owned();
                if !order.contains(&name) {
                    fs::copy(file, staging.join("modules").join(&name))?;
                    order.push(name);
                }
            }
        }
        fs::write(staging.join("modules/order"), order.join("\n"))?;
        let pack = format!(
            "cd '{}' && find . | cpio -o -H newc --quiet | gzip -1 > '{}'",
            staging.display(),
            self.initrd().display()
        );
        show(Command::new("sh").args(["-ec", &pack]))
    }

    fn make_disk(&self) -> Result<()> {
        let disk = self.disk().to_string_lossy().into_owned();
        run("truncate", &["-s", "0", &disk])?;
        run("truncate", &["-s", DISK_SIZE, &disk])?;
        run(
            "mke2fs",
            &["-q", "-t", "ext4", "-d", &self.root().to_string_lossy(), "-E", "lazy_itable_init=1", &disk],
        )?;
        Ok(())
    }

    fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    fn disk(&self) -> PathBuf {
        self.dir.join("disk.img")
    }

    fn initrd(&self) -> PathBuf {
        self.dir.join("initrd.gz")
    }

    fn kernel(&self) -> Result<PathBuf> {
        Ok(self.root().join("boot").join(format!("vmlinuz-{}", self.release()?)))
    }

    /// The kernel release of the guest, such as `6.1.0-56-amd64`.
    fn release(&self) -> Result<String> {
        let mut releases = fs::read_dir(self.root().join("lib/modules"))?.flatten();
        let first = releases.next().context("the guest has no kernel modules")?;
        Ok(first.file_name().to_string_lossy().into_owned())
    }
}

/// The machine's own package sources: where it gets packages, the guest gets them.
fn sources() -> Result<Vec<PathBuf>> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.extend(fs::read_dir("/etc/apt/sources.list.d")?.flatten().map(|e| e.path()));
    Ok(files.into_iter().filter(|f| f.exists()).collect())
}

/// Whether a virtual processor can be made: a device file alone does not say so.
fn kvm_works() -> bool {
    let probe = Command::new("timeout")
        .args([
            "5",
            "qemu-system-x86_64",
            "-accel",
            "kvm",
            "-nodefaults",
            "-nographic",
            "-monitor",
            "stdio",
            "-S",
        ])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status();
    probe.is_ok_and(|status| status.success())
}

fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}
