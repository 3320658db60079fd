//! Puts the BPF object into `OUT_DIR`: built here where the tools are, else the committed one.
//!
//! `MESHD_EBPF` chooses: `auto` (default), `build` (fail if it can't be built), `prebuilt`.

#[path = "ebpf_build.rs"]
mod ebpf_build;

use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context as _, Result, bail};

use crate::ebpf_build::{PREBUILT, Tools};

fn main() -> Result<()> {
    let manifest_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("set by cargo")?);
    let workspace = manifest_dir.ancestors().nth(2).context("two levels below the workspace")?;
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").context("set by cargo")?);
    for variable in ["MESHD_EBPF", "PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    for path in ["ebpf/abi", "ebpf/packet", "ebpf/progs", PREBUILT] {
        println!("cargo::rerun-if-changed={}", workspace.join(path).display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=ebpf_build.rs");

    let mode = env::var("MESHD_EBPF").unwrap_or_else(|_| "auto".to_owned());
    let prebuilt = workspace.join(PREBUILT);
    let object = match (mode.as_str(), Tools::find()) {
        ("auto" | "build", Ok(tools)) => tools.build(workspace, &out_dir.join("bpf"))?,
        ("build", Err(missing)) => return Err(missing),
        ("auto", Err(missing)) => {
            println!("cargo::warning=using the committed BPF object, not building it: {missing}");
            fs::read(&prebuilt).with_context(|| prebuilt.display().to_string())?
        }
        ("prebuilt", _) => fs::read(&prebuilt).with_context(|| prebuilt.display().to_string())?,
        (other, _) => bail!("MESHD_EBPF is auto, build or prebuilt, not {other}"),
    };
    fs::write(out_dir.join("mesh.o"), object)?;
    Ok(())
}
