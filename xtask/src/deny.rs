//! Licences, bans and sources of all dependencies.

use anyhow::Result;

use crate::sh::cargo;

/// Runs cargo-deny with `deny.toml`. (Its advisory database is fetched from outside; CI has no way there.)
pub fn check() -> Result<()> {
    cargo(&["deny", "--log-level", "error", "check", "--hide-inclusion-graph", "licenses", "bans", "sources"])
}
