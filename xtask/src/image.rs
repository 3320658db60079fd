//! Images of the demo and the tests: root file systems with what one program needs, as tar files for `docker import`.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use bench_lab::run;

use crate::artifacts::build_static;
use crate::sh::{root, show, target_dir};

const BUSYBOX: &str = "/bin/busybox";
const REDIS: [&str; 2] = ["/usr/bin/redis-server", "/usr/bin/redis-cli"];
const POSTGRES: [&str; 4] = [
    "/usr/lib/postgresql/15/bin/initdb",
    "/usr/lib/postgresql/15/bin/postgres",
    "/usr/lib/postgresql/15/lib/dict_snowball.so",
    "/usr/lib/postgresql/15/lib/plpgsql.so",
];
const POSTGRES_SHARE: &str = "/usr/share/postgresql/15";
/// What initdb reads beside the files that lie there.
const POSTGRES_SHARE_DIRS: [&str; 2] = ["timezonesets", "tsearch_data"];
const POSTGRES_EXTENSION: &str = "plpgsql";
const TIME_ZONE: &str = "/usr/share/zoneinfo/UTC";
/// The users that Docker's images of both have.
const SERVER_UID: u32 = 999;

/// Builds the `whoami` root file system and returns its tar file.
pub fn whoami() -> Result<PathBuf> {
    let image = RootFs::begin("whoami")?;
    image.place(&build_static("bench-whoami")?, "whoami")?;
    image.users("/whoami", &[])?;
    image.pack()
}

/// The images of the test stacks: `apps.tar`, `redis.tar` and `postgres.tar`, beside `whoami.tar`.
pub fn of_test_stacks() -> Result<Vec<PathBuf>> {
    Ok(vec![apps()?, redis()?, postgres()?])
}

fn apps() -> Result<PathBuf> {
    let image = RootFs::begin("apps")?;
    image.place(&build_static("bench-apps")?, "apps")?;
    image.users("/apps", &[])?;
    image.pack()
}

/// Debian's Redis, with a shell around it.
fn redis() -> Result<PathBuf> {
    let image = RootFs::begin("redis")?;
    image.shell("redis.sh")?;
    image.users("/bin/sh", &["redis"])?;
    REDIS.iter().try_for_each(|program| image.program(program))?;
    fs::create_dir(image.dir.join("data"))?;
    image.pack()
}

/// Debian's `PostgreSQL`, with a shell around it.
fn postgres() -> Result<PathBuf> {
    let image = RootFs::begin("postgres")?;
    image.shell("postgres.sh")?;
    image.users("/bin/sh", &["postgres"])?;
    POSTGRES.iter().try_for_each(|program| image.program(program))?;
    let share = Path::new(POSTGRES_SHARE);
    image.files_of(share, "")?;
    for dir in POSTGRES_SHARE_DIRS {
        image.files_of(&share.join(dir), "")?;
    }
    image.files_of(&share.join("extension"), POSTGRES_EXTENSION)?;
    image.file(Path::new(TIME_ZONE))?;
    image.pack()
}

/// A root file system that is being filled.
struct RootFs {
    name: &'static str,
    dir: PathBuf,
}

impl RootFs {
    /// An empty one, whatever an earlier build has left.
    fn begin(name: &'static str) -> Result<Self> {
        let dir = target_dir().join(format!("{name}-rootfs"));
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        for below in ["etc", "tmp", "proc", "sys", "dev"] {
            fs::create_dir_all(dir.join(below))?;
        }
        fs::set_permissions(dir.join("tmp"), fs::Permissions::from_mode(0o1777))?;
        Ok(Self { name, dir })
    }

    fn place(&self, file: &Path, name: &str) -> Result<()> {
        fs::copy(file, self.dir.join(name)).with_context(|| format!("can't copy {}", file.display()))?;
        Ok(())
    }

    /// Root, nobody and these; `shell` is what logs them in.
    fn users(&self, shell: &str, names: &[&str]) -> Result<()> {
        let all = [("root", "root", 0), ("nobody", "nogroup", 65534)].into_iter();
        let all = all.chain(names.iter().map(|name| (*name, *name, SERVER_UID)));
        let users = all.clone().map(|(user, _, id)| format!("{user}:x:{id}:{id}:{user}:/:{shell}\n"));
        let groups = all.map(|(_, group, id)| format!("{group}:x:{id}:\n"));
        fs::write(self.dir.join("etc/passwd"), users.collect::<String>())?;
        fs::write(self.dir.join("etc/group"), groups.collect::<String>())?;
        Ok(())
    }

    /// Busybox under all of its names, and the entrypoint that needs them.
    fn shell(&self, entrypoint: &str) -> Result<()> {
        let bin = self.dir.join("bin");
        fs::create_dir_all(&bin)?;
        self.place(Path::new(BUSYBOX), "bin/busybox")?;
        for name in run(BUSYBOX, &["--list"])?.lines().filter(|name| *name != "busybox") {
            symlink("busybox", bin.join(name))?;
        }
        self.place(&root().join("bench/apps/images").join(entrypoint), "entrypoint.sh")
    }

    /// A program or a library at its own place, and all that the loader will look for.
    fn program(&self, path: &str) -> Result<()> {
        let needs = run("ldd", &[path])?;
        // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`
        let libraries = needs.split_whitespace().filter(|word| word.starts_with('/'));
        libraries.chain([path]).try_for_each(|file| self.file(Path::new(file)))
    }

    /// The plain files of a directory whose names begin so.
    fn files_of(&self, dir: &Path, prefix: &str) -> Result<()> {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let is_wanted = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix));
            if is_wanted && path.is_file() {
                self.file(&path)?;
            }
        }
        Ok(())
    }

    /// A file at its own place; what a link points to, not the link.
    fn file(&self, path: &Path) -> Result<()> {
        let below = path.strip_prefix("/").context("a path from the root")?;
        fs::create_dir_all(self.dir.join(below).parent().context("a file has a directory")?)?;
        self.place(path, &below.to_string_lossy())
    }

    /// Names, owners and times fixed: the same programs give the same image.
    fn pack(&self) -> Result<PathBuf> {
        let tar = target_dir().join(format!("{}.tar", self.name));
        show(
            Command::new("tar")
                .args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "-cf"])
                .arg(&tar)
                .arg("-C")
                .arg(&self.dir)
                .arg("."),
        )?;
        Ok(tar)
    }
}
