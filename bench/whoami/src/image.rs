//! Builds the `whoami` image: a root file system with one static program, as a tar for `docker import`.
//!
//! ```text
//! docker import --change 'ENTRYPOINT ["/whoami"]' --change 'CMD ["serve"]' --change 'EXPOSE 80' whoami.tar whoami:1
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// `--change` instructions that go with the tar.
pub const CHANGES: [&str; 3] = [r#"ENTRYPOINT ["/whoami"]"#, r#"CMD ["serve"]"#, "EXPOSE 80"];

/// Compiles the program, statically, with the cargo that runs (or that is in the path). `workspace` is the root of
/// the checkout. Gives the binary's path.
pub fn build_program(workspace: &Path) -> Result<PathBuf> {
    // A directory of its own: the build that calls this may hold the lock of the usual one.
    let target_dir = workspace.join("target").join("whoami");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(workspace).args(["rustc", "--quiet", "--release", "--package", "bench-whoami"]);
    command.args(["--bin", "whoami", "--target-dir"]).arg(&target_dir);
    command.args(["--", "-C", "target-feature=+crt-static", "-C", "strip=symbols"]);
    // Set for the caller's own packages by cargo; a nested build must not see them.
    command.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    let status = command.status().context("cargo does not start")?;
    ensure!(status.success(), "the whoami program does not compile ({status})");
    Ok(target_dir.join("release").join("whoami"))
}

/// The image's root file system: the program, its users, a directory for temporary files.
pub fn rootfs_tar(program: &Path) -> Result<Vec<u8>> {
    let program = std::fs::read(program).with_context(|| format!("no program at {}", program.display()))?;
    let mut tar = tar::Builder::new(Vec::new());
    add(&mut tar, "etc/", 0o755, None)?;
    add(
        &mut tar,
        "etc/passwd",
        0o644,
        Some(b"root:x:0:0:root:/:/whoami\nnobody:x:65534:65534::/:/whoami\n"),
    )?;
    add(&mut tar, "etc/group", 0o644, Some(b"root:x:0:\nnogroup:x:65534:\n"))?;
    add(&mut tar, "tmp/", 0o1777, None)?;
    add(&mut tar, "whoami", 0o755, Some(&program))?;
    Ok(tar.into_inner()?)
}

/// A directory where there is no content. Times are zero: the same program makes the same tar.
fn add(tar: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, content: Option<&[u8]>) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_entry_type(if content.is_some() {
        tar::EntryType::Regular
    } else {
        tar::EntryType::Directory
    });
    header.set_size(content.map_or(0, |bytes| bytes.len() as u64));
    tar.append_data(&mut header, path, content.unwrap_or_default())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tar_has_the_program_and_is_the_same_each_time() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let program = dir.path().join("program");
        std::fs::write(&program, b"static").expect("written");
        let tar = rootfs_tar(&program).expect("made");
        assert_eq!(tar, rootfs_tar(&program).expect("made"));
        let mut archive = tar::Archive::new(tar.as_slice());
        let entries = archive.entries().expect("a tar").map(|entry| entry.expect("an entry"));
        let names: Vec<String> =
            entries.map(|entry| entry.path().expect("text").display().to_string()).collect();
        assert_eq!(names, ["etc/", "etc/passwd", "etc/group", "tmp/", "whoami"]);
        assert!(rootfs_tar(&dir.path().join("nothing")).is_err());
    }
}
