//! How the BPF object is built. Included by this crate's build script and by `xtask`, so that both get the same bytes.
//!
//! `core` for the BPF target is built from source (`-Z build-std`), which a stable compiler does when told that it may
//! (`RUSTC_BOOTSTRAP`); that holds for this one child process and no other crate. All paths are remapped, so that the
//! object is the same whatever directory, user or machine built it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context as _, Result, bail, ensure};

/// The committed object, relative to the workspace.
pub const PREBUILT: &str = "ebpf/prebuilt/mesh.o";

const TARGET: &str = "bpfel-unknown-none";
/// Between flags in `CARGO_ENCODED_RUSTFLAGS`.
const SEPARATOR: &str = "\u{1f}";

/// What is needed, or what is missing.
pub struct Tools {
    sysroot: PathBuf,
    host: String,
}

impl Tools {
    /// Looks for rust-src and bpf-linker; the error says what is missing and how to get it.
    pub fn find() -> Result<Self> {
        let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let sysroot = PathBuf::from(output(Command::new(&rustc).args(["--print", "sysroot"]))?);
        let version = output(Command::new(&rustc).arg("-vV"))?;
        let host =
            version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
        let tools = Self { sysroot, host: host.to_owned() };
        ensure!(
            tools.rust_src().join("library/core/Cargo.toml").exists(),
            "the component rust-src is not installed: run `cargo xtask setup`"
        );
        let path = env::var_os("PATH").unwrap_or_default();
        ensure!(
            env::split_paths(&path).any(|directory| directory.join("bpf-linker").is_file()),
            "bpf-linker is not installed: run `cargo xtask setup`"
        );
        ensure!(tools.objcopy().is_file(), "rustc has no rust-objcopy at {}", tools.objcopy().display());
        Ok(tools)
    }

    fn rust_src(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust")
    }

    fn objcopy(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib").join(&self.host).join("bin/rust-objcopy")
    }

    /// Builds the object and strips it of all but what the kernel takes. `target_dir` is used by nothing else.
    pub fn build(&self, workspace: &Path, target_dir: &Path) -> Result<Vec<u8>> {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command
            .current_dir(workspace)
            .args(["build", "--package", "ebpf-progs", "--bin", "mesh", "--release", "--locked"])
            .args(["--target", TARGET, "-Z", "build-std=core", "--target-dir"])
            .arg(target_dir)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", self.flags(workspace, target_dir)?)
            // A profile, wrapper or flag meant for the host must not change the object.
            .env_remove("RUSTC")
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTC_WORKSPACE_WRAPPER")
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_BUILD_TARGET");
        output(&mut command)?;
        self.strip(&target_dir.join(TARGET).join("release/mesh"))
    }

    fn flags(&self, workspace: &Path, target_dir: &Path) -> Result<OsString> {
        let cargo_home = match env::var_os("CARGO_HOME") {
            Some(directory) => PathBuf::from(directory),
            None => PathBuf::from(env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?)
                .join(".cargo"),
        };
        let mut flags = OsString::from(
            ["--cfg=bpf_target_arch=\"x86_64\"", "-Cdebuginfo=2", "-Ctarget-cpu=v3", "-Clink-arg=--btf"]
                .join(SEPARATOR),
        );
        // The last that matches counts: the most special come last.
        let remapped = [
            (workspace, "/meshd"),
            (target_dir, "/target"),
            (&cargo_home, "/cargo"),
            (&self.rust_src(), "/rust-src"),
        ];
        for (from, to) in remapped {
            flags.push(SEPARATOR);
            flags.push("--remap-path-prefix=");
            flags.push(from);
            flags.push("=");
            flags.push(to);
        }
        Ok(flags)
    }

    /// Keeps `.BTF` and `.BTF.ext`, drops DWARF.
    fn strip(&self, object: &Path) -> Result<Vec<u8>> {
        let stripped = object.with_extension("o");
        output(
            Command::new(self.objcopy())
                .env("LD_LIBRARY_PATH", self.sysroot.join("lib"))
                .arg("--strip-debug")
                .args([object, &stripped]),
        )?;
        fs::read(&stripped).with_context(|| stripped.display().to_string())
    }
}

/// Standard output of a command that succeeds.
fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
