//! The table of drop reasons and programs in the documentation is the contract's own.

use std::fs;
use std::path::PathBuf;

use ebpf_abi::{DropReason, ProgramId};

const FILE: &str = "docs/design/drop-reasons.md";

fn expected() -> String {
    format!(
        "# What the BPF programs count\n\n\
         For every program and at all times: received = forwarded + passed + Σ dropped. `meshctl drops` shows it, read\n\
         from the pinned maps. *Passed* packets go to the kernel's own stack, or to the program beneath.\n\n\
         Written by `UPDATE=1 cargo test -p ebpf-abi --test documentation` from `ebpf/abi/src/counters.rs`.\n\n\
         ## Programs\n\n{}\n## Drop reasons\n\n\
         Each has a fixture in `dataplane/kernel/tests/model/fixtures.rs`: a packet, or a socket's call, that one program\n\
         drops for it. No packet brings about `tunnel`: the kernel refuses our tunnel keys only if it has no memory left,\n\
         and the fixture lets the helper say so.\n\n{}",
        ProgramId::TABLE,
        DropReason::TABLE
    )
}

#[test]
fn the_documentation_has_every_drop_reason() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(FILE);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, expected()).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap();
    assert_eq!(written, expected(), "{FILE} is old: UPDATE=1 cargo test -p ebpf-abi --test documentation");
}
