//! A container image that does nothing: busybox asleep.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use bench_lab::run;
use tempfile::TempDir;

/// Its name in a daemon.
pub const IMAGE: &str = "bench-idle:latest";

/// What a container of it runs.
pub const COMMAND: &[&str] = &["/busybox", "sleep", "1000000"];

/// Debian's `busybox-static`.
const BUSYBOX: &str = "/bin/busybox";

/// The root file system as a tar file, for `docker import`.
pub struct ImageFile {
    directory: TempDir,
}

impl ImageFile {
    pub fn new() -> Result<Self> {
        ensure!(Path::new(BUSYBOX).exists(), "no {BUSYBOX}: install Debian's busybox-static");
        let this = Self { directory: tempfile::tempdir()? };
        let root = this.directory.path().join("root");
        for name in ["dev", "etc", "proc", "sys", "tmp"] {
            std::fs::create_dir_all(root.join(name))?;
        }
        std::fs::copy(BUSYBOX, root.join("busybox"))?;
        let text = |path: &Path| path.to_str().context("a path in UTF-8").map(str::to_owned);
        run("tar", &["-cf", &text(&this.path())?, "-C", &text(&root)?, "."])?;
        Ok(this)
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("image.tar")
    }
}
