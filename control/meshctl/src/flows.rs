//! `meshctl flows`: single packets and what became of them, a line each.

use std::fmt::Write as _;

use dataplane_model::inspect::{FlowSample, FlowSamples, NodeAnswer, NodeOutcome};

use crate::nodes::{Asked, gather};
use crate::source::Source;
use crate::{printable, write};

/// A second of one node, or of each; again and again with `watch`, until nobody reads any more. As JSON a line per second and
/// node.
pub async fn show(nodes: &[Asked], every: u32, watch: bool, as_json: bool) -> anyhow::Result<()> {
    let ask = async |source: &Source| source.samples(every).await;
    loop {
        let answers = gather(nodes, &ask).await;
        if let [NodeAnswer { outcome: NodeOutcome::Error(error), .. }] = &answers[..] {
            anyhow::bail!("{error}");
        }
        for answer in &answers {
            let out = if as_json { json(answer)? } else { printable(&text(answer)) };
            if !write(&out)? {
                return Ok(());
            }
        }
        if !watch {
            return Ok(());
        }
    }
}

fn json(answer: &NodeAnswer<FlowSamples>) -> anyhow::Result<String> {
    let line = match &answer.outcome {
        NodeOutcome::Answer(samples) if answer.hostname.is_empty() => serde_json::to_string(samples)?,
        _ => serde_json::to_string(answer)?,
    };
    Ok(line + "\n")
}

fn text(answer: &NodeAnswer<FlowSamples>) -> String {
    let name = if answer.hostname.is_empty() { String::new() } else { format!("{} ", answer.hostname) };
    let report = match &answer.outcome {
        NodeOutcome::Answer(report) => report,
        NodeOutcome::Error(error) => return format!("{name}no answer: {error}\n"),
    };
    let mut out: String = report.samples.iter().map(|sample| name.clone() + &line(sample)).collect();
    if report.n_left_off > 0 {
        writeln!(out, "{name}({} more packets are not shown)", report.n_left_off)
            .expect("a string takes all");
    }
    if report.n_lost > 0 {
        writeln!(out, "{name}({} events were lost: the buffer was full; raise --every)", report.n_lost)
            .expect("a string takes all");
    }
    out
}

/// What the packet was, what the program did, and what it is now where that is something else.
fn line(sample: &FlowSample) -> String {
    let (before, after) = (sample.before.innermost(), sample.after.innermost());
    let flags = if before.flags.is_empty() { String::new() } else { format!(" {}", before.flags) };
    let tunnel = sample.tunnel.map(|tunnel| format!(", out of VNI {} from {}", tunnel.vni, tunnel.from));
    let mut becomes = String::new();
    if (&before.source, &before.destination) != (&after.source, &after.destination) {
        becomes = format!(", now {} > {}", after.source, after.destination);
    } else if before.destination_mac != after.destination_mac {
        becomes = format!(", now to {}", after.destination_mac);
    }
    let reason = sample.reason.as_ref().map(|reason| format!(" ({reason})"));
    format!(
        "{} {} {} > {}{flags} {} bytes: {} {}{}{}{becomes}\n",
        sample.interface,
        before.protocol,
        before.source,
        before.destination,
        sample.len,
        sample.program,
        sample.verdict,
        reason.unwrap_or_default(),
        tunnel.unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use dataplane_model::inspect::{SampledPacket, SampledTunnel};

    use super::*;

    fn sample() -> FlowSample {
        let before = SampledPacket {
            destination_mac: "02:42:0a:00:00:05".into(),
            protocol: "tcp".into(),
            source: "192.0.2.1:40000".into(),
            destination: "198.18.0.11:8080".into(),
            flags: "S".into(),
            inner: None,
        };
        FlowSample {
            at_ns: 1,
            program: "mesh_vxlan".into(),
            interface: "mesh-vx".into(),
            verdict: "forwarded".into(),
            reason: None,
            len: 74,
            tunnel: Some(SampledTunnel { from: [198, 18, 0, 11].into(), vni: 4096 }),
            after: SampledPacket { destination: "10.0.0.5:80".into(), ..before.clone() },
            before,
        }
    }

    fn shown(hostname: &str, samples: FlowSamples) -> String {
        text(&NodeAnswer {
            hostname: hostname.into(),
            node_id: String::new(),
            outcome: NodeOutcome::Answer(samples),
        })
    }

    #[test]
    fn a_packet_is_a_line() {
        let dropped = FlowSample {
            verdict: "dropped".into(),
            reason: Some("unpublished-port".into()),
            tunnel: None,
            after: sample().before,
            ..sample()
        };
        let mut tunnelled = FlowSample { tunnel: None, after: sample().before, ..sample() };
        "02:42:0a:00:00:06".clone_into(&mut tunnelled.after.destination_mac);
        let report = FlowSamples { samples: vec![sample(), dropped, tunnelled], ..FlowSamples::default() };
        let expected = "\
mesh-vx tcp 192.0.2.1:40000 > 198.18.0.11:8080 S 74 bytes: mesh_vxlan forwarded, out of VNI 4096 from 198.18.0.11, now 192.0.2.1:40000 > 10.0.0.5:80
mesh-vx tcp 192.0.2.1:40000 > 198.18.0.11:8080 S 74 bytes: mesh_vxlan dropped (unpublished-port)
mesh-vx tcp 192.0.2.1:40000 > 198.18.0.11:8080 S 74 bytes: mesh_vxlan forwarded, now to 02:42:0a:00:00:06
";
        assert_eq!(shown("", report), expected);
    }

    #[test]
    fn what_is_missing_is_said() {
        let report = FlowSamples { every: 1, samples: vec![], n_left_off: 3, n_lost: 4 };
        let expected = "w1 (3 more packets are not shown)\nw1 (4 events were lost: the buffer was full; raise --every)\n";
        assert_eq!(shown("w1", report), expected);
    }
}
