//! What the kernel's verifier makes of the programs, on this kernel and on Debian 12's, as a page of the documentation.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context as _, Result, ensure};

use crate::guest::Guest;
use crate::sh::{root, show};
use crate::{setup, test};

const FILE: &str = "docs/design/programs.md";
const HEAD: &str = "# What the kernel's verifier makes of the BPF programs\n\n\
    Instructions are those of the object. The verifier looks at each as often as a way leads there with something else known,\n\
    and refuses a program beyond 1,000,000; how often depends on the kernel. Stacks are of all functions of the deepest call,\n\
    counted as kernel 6.1 does; 512 bytes are allowed. `dataplane/kernel/tests/budgets.rs` fails at half of the first and\n\
    beyond the second.\n\n";

/// Runs the test that knows here and in the guest, and writes the page.
pub fn write() -> Result<()> {
    setup::run(setup::Scope::Guest)?;
    let programs = test::test_programs("dataplane-kernel", &["--test", "budgets"])?;
    let program = programs.first().context("cargo built no test")?;
    let guest = Guest::build()?;
    let share = guest.share();
    let here = share.join("budgets.here");
    show(std::process::Command::new(program).env("MESH_BUDGETS", &here))?;
    fs::copy(program, share.join("budgets"))?;
    guest.run("MESH_BUDGETS=/share/budgets.there /share/budgets")?;
    let page = page(&fs::read_to_string(here)?, &fs::read_to_string(share.join("budgets.there"))?)?;
    fs::write(root().join(FILE), page).with_context(|| format!("can't write {FILE}"))
}

/// From what the test wrote on either kernel: a line of ABI and kernel; then name, instructions, stack, and what the verifier
/// looked at.
fn page(here: &str, there: &str) -> Result<String> {
    let fields = |line: &'_ str| line.split('\t').map(str::to_owned).collect::<Vec<_>>();
    let (here, there): (Vec<_>, Vec<_>) =
        (here.lines().map(fields).collect(), there.lines().map(fields).collect());
    let mut page = HEAD.to_owned();
    ensure!(here.len() == there.len(), "not the same programs on both kernels");
    for (position, (here, there)) in here.iter().zip(&there).enumerate() {
        ensure!(here[0] == there[0], "{} here, {} there", here[0], there[0]);
        if position == 0 {
            let [abi, kernel] = &here[..] else { anyhow::bail!("a head of {} fields", here.len()) };
            writeln!(page, "{abi}. Written by `cargo xtask ebpf --budgets`.\n")?;
            writeln!(
                page,
                "| program | instructions | stack, bytes | looked at by Linux {kernel} | by {} |",
                there[1]
            )?;
            writeln!(page, "|---|---:|---:|---:|---:|")?;
        } else {
            let [name, size, stack, verified] = &here[..] else {
                anyhow::bail!("a row of {} fields", here.len())
            };
            writeln!(page, "| `{name}` | {size} | {stack} | {verified} | {} |", there[3])?;
        }
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_both_kernels() {
        let here = "ABI 7\t6.18.0\nmesh_xdp\t100\t64\t5000\n";
        let there = "ABI 7\t6.1.0\nmesh_xdp\t100\t64\t7000\n";
        let page = page(here, there).unwrap();
        assert!(
            page.ends_with(
                "| by 6.1.0 |\n|---|---:|---:|---:|---:|\n| `mesh_xdp` | 100 | 64 | 5000 | 7000 |\n"
            ),
            "{page}"
        );
        assert!(super::page(here, "ABI 7\t6.1.0\n").is_err());
        assert!(super::page(here, &there.replace("mesh_xdp", "mesh_task")).is_err());
    }
}
