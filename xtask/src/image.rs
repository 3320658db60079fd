//! The demo's image: a root file system with one static program in it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::artifacts::build_static;
use crate::sh::{show, target_dir};

/// Builds the `whoami` root file system and returns its tar file.
pub fn whoami() -> Result<PathBuf> {
    let program = build_static("bench-whoami")?;
    let root = target_dir().join("whoami-rootfs");
    for dir in ["", "etc", "tmp", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::copy(program, root.join("whoami"))?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/whoami\nnobody:x:65534:65534:nobody:/:/whoami\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    let tar = target_dir().join("whoami.tar");
    // Names, owners and times fixed: the same program gives the same image.
    show(
        Command::new("tar")
            .args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "-cf"])
            .arg(&tar)
            .arg("-C")
            .arg(&root)
            .arg("."),
    )?;
    Ok(tar)
}
