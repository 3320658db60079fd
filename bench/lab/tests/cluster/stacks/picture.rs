//! A picture of the voting app's two pages, taken by a browser that is the cluster's client.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, ensure};

use crate::support::{Bench, Outcome};

/// Where the picture is to be. Set by `cargo xtask pictures`.
const DIRECTORY: &str = "MESH_PICTURES";
const FRAMES: &str = include_str!("picture.html");
const SIZE: &str = "--window-size=1180,580";
/// More pixels than points: letters stay sharp where the picture is shown large.
const SCALE: &str = "--force-device-scale-factor=1.5";

/// Both pages beside each other, each from another node.
pub fn take_if_asked(bench: &Bench, vote_port: u16, result_port: u16) -> Outcome {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return Ok(()) };
    let nodes = bench.lab.nodes();
    let (first, last) = (nodes.first().context("no node")?, nodes.last().context("no node")?);
    let vote = SocketAddr::new(first.address.into(), vote_port);
    let result = SocketAddr::new(last.address.into(), result_port);
    let dir = tempfile::tempdir()?;
    let frames = dir.path().join("frames.html");
    let text = FRAMES.replace("{{vote}}", &vote.to_string()).replace("{{result}}", &result.to_string());
    std::fs::write(&frames, text)?;
    let picture = Path::new(&directory).join("voting-app.png");
    let profile = format!("--user-data-dir={}", dir.path().join("profile").display());
    let screenshot = format!("--screenshot={}", picture.display());
    let page = format!("file://{}", frames.display());
    let browser = ["60", "chromium-headless-shell", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"];
    let options = [SIZE, SCALE, &profile, &screenshot, &page];
    let said = bench.lab.exec("client", "timeout", &[&browser[..], &options].concat())?;
    ensure!(said.success() && picture.exists(), "no picture: {}", said.text());
    println!("  {}", picture.display());
    Ok(())
}
