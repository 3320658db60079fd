//! Bulk streams by `iperf3`: one connection.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::netns::Place;
use crate::process::Background;

/// Where the server listens.
const PORT: u16 = 5201;

/// A server in `place` that takes streams to `address` until it is dropped.
pub fn serve(place: &Place, address: Ipv4Addr) -> Result<Background> {
    let mut command = place.command("iperf3");
    command.args(["-s", "-B", &address.to_string(), "-p", &PORT.to_string()]);
    let mut server = Background::start(command)?;
    server.wait_for_port(place, SocketAddr::from((address, PORT)))?;
    Ok(server)
}

/// Gbit/s that arrive at the server at `address`.
pub fn stream(from: &Place, address: Ipv4Addr, seconds: u32) -> Result<f64> {
    let (address, port, seconds) = (address.to_string(), PORT.to_string(), seconds.to_string());
    let output = from.run("iperf3", &["-c", &address, "-p", &port, "-t", &seconds, "-J"])?;
    let result: Value = serde_json::from_str(&output).context("iperf3 gave no JSON")?;
    let bits_per_second = result.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
    Ok(bits_per_second.context("iperf3 gave no rate")? / 1e9)
}
