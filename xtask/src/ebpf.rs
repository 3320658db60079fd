//! The committed BPF object: written anew, or compared with what its source gives.

#[path = "../../dataplane/kernel/ebpf_build.rs"]
mod recipe;

use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::sh::{root, target_dir};
use recipe::{PREBUILT, Tools};

/// Builds the object and commits it to the tree.
pub fn write() -> Result<()> {
    crate::setup::run(crate::setup::Scope::Demo)?;
    let object = build()?;
    fs::write(root().join(PREBUILT), &object)?;
    println!("{PREBUILT}: {} bytes", object.len());
    Ok(())
}

/// Builds the object; an error if the committed one differs.
pub fn check() -> Result<()> {
    let committed = fs::read(root().join(PREBUILT)).with_context(|| format!("can't read {PREBUILT}"))?;
    if build()? != committed {
        bail!("{PREBUILT} is not what its source gives; run `cargo xtask ebpf` and commit it");
    }
    println!("{PREBUILT} is what its source gives, byte for byte");
    Ok(())
}

fn build() -> Result<Vec<u8>> {
    Tools::find()?.build(root(), &target_dir().join("bpf"))
}
