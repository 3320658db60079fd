//! What tasks need built before they run.

use std::path::PathBuf;

use anyhow::Result;

use crate::guest::Guest;
use crate::sh::{cargo, cargo_command, root, show, target_dir};
use crate::{image, setup};

/// Programs built for a lab.
#[derive(Debug, Clone)]
pub struct Programs {
    pub meshd: PathBuf,
    pub meshctl: PathBuf,
    /// Root file system of the demo's image, as a tar file for `docker import`.
    pub whoami_image: PathBuf,
}

/// Optimised or quick to build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    Dev,
    Release,
}

/// Builds the daemon, the inspection tool and the demo's image.
pub fn programs(profile: Profile) -> Result<Programs> {
    programs_and(profile, &[])
}

/// And further packages, in one go: cargo would build what they share once for each.
fn programs_and(profile: Profile, packages: &[&str]) -> Result<Programs> {
    let mut args = vec!["build"];
    args.extend(["meshd", "meshctl"].iter().chain(packages).flat_map(|package| ["-p", package]));
    if profile == Profile::Release {
        args.push("--release");
    }
    cargo(&args)?;
    let dir = target_dir().join(if profile == Profile::Release { "release" } else { "debug" });
    Ok(Programs { meshd: dir.join("meshd"), meshctl: dir.join("meshctl"), whoami_image: image::whoami()? })
}

/// `cargo xtask bench <form> <arguments>`.
pub fn bench(form: &str, arguments: &[String]) -> Result<()> {
    setup::run(setup::Scope::Everything)?;
    let programs = programs_and(Profile::Release, &["bench-load"])?;
    let mut bench = std::process::Command::new(target_dir().join("release/bench-load"));
    show(bench.arg(form).args(arguments).current_dir(root()).envs(environment(&programs)))
}

/// `cargo xtask bench guest <arguments>`: boots the test guest, measures there, and takes the tables out of it.
pub fn bench_in_guest(into_docs: bool, arguments: &[String]) -> Result<()> {
    setup::run(setup::Scope::Guest)?;
    cargo(&["build", "--release", "-p", "bench-load"])?;
    let guest = Guest::build()?;
    let share = guest.share();
    std::fs::copy(target_dir().join("release/bench-load"), share.join("bench-load"))?;
    // Docker's ingress forwards in a namespace of its own, which has this from the machine's.
    let forwarding = "echo 1 > /proc/sys/net/ipv4/ip_forward";
    let bench = format!("/tmp/bench-load guest --out /share/bench {}", arguments.join(" "));
    guest.run(&format!("{forwarding}\ncp /share/bench-load /tmp/\n{bench}\n"))?;
    let out = if into_docs { root().join("docs") } else { target_dir().join("bench") };
    std::fs::create_dir_all(&out)?;
    for name in ["bench-guest.md", "bench-guest.json"] {
        std::fs::copy(share.join("bench").join(name), out.join(name))?;
    }
    Ok(())
}

/// Tells tests and benches where the programs are.
pub fn environment(programs: &Programs) -> [(&'static str, PathBuf); 3] {
    [
        ("MESH_MESHD", programs.meshd.clone()),
        ("MESH_MESHCTL", programs.meshctl.clone()),
        ("MESH_WHOAMI_IMAGE", programs.whoami_image.clone()),
    ]
}

/// Static binaries go to a target directory of their own: other flags would rebuild everything.
pub fn build_static(package: &str) -> Result<PathBuf> {
    let dir = target_dir().join("static");
    show(
        cargo_command()
            .args(["build", "--quiet", "--release", "--target", "x86_64-unknown-linux-gnu", "-p", package])
            .arg("--target-dir")
            .arg(&dir)
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            // They are small servers of tests: built soon, and with nothing that a debugger wants.
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "none")
            .env("CARGO_PROFILE_RELEASE_STRIP", "symbols"),
    )?;
    Ok(dir.join("x86_64-unknown-linux-gnu/release").join(package))
}
