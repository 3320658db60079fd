//! `meshctl trace`: one node's tables, and those of the next ones on the way, through the managers.

use std::fmt::Write as _;

use anyhow::Context;
use clap::Args;
use dataplane_model::inspect::{TraceEnd, TraceReport, TraceRequest, TraceStep, TraceWay, TunnelledPacket};

use crate::nodes::{self, Asked, gather};
use crate::parse_name;
use crate::source::Source;

/// Nodes that one way may lead over: a connection that begins takes two.
const MAX_NODES: usize = 8;
/// IANA's number.
const SCTP: u8 = 132;

#[derive(Debug, Args)]
pub struct TraceArguments {
    /// A task of this node (name, id, or the beginning of one), or outside/ADDRESS[:PORT]
    #[arg(long, value_name = "TASK|outside/ADDRESS", value_parser = parse_name)]
    from: String,
    #[arg(long, value_name = "SERVICE:PORT|ADDRESS:PORT", value_parser = parse_name)]
    to: String,
    /// tcp, udp or sctp
    #[arg(long, default_value = "tcp", value_parser = parse_protocol)]
    protocol: u8,
    /// Look SERVICE up by IPv6, as `curl -6` does. Without it, it is IPv4 that is asked for; an ADDRESS has its own family, and
    /// a client outside decides by its own
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Source port, where --from has none: it decides the place in a ring
    #[arg(long, default_value_t = 40_000)]
    port: u16,
    /// Send a packet, and show its way by what the programs tell of it. The task begins a connection, which is reset, or sends
    /// an empty datagram, from --port
    #[arg(long)]
    live: bool,
}

/// The trace, followed from node to node by whom `source` can ask.
pub async fn ask(source: &Source, arguments: &TraceArguments) -> anyhow::Result<TraceReport> {
    let TraceArguments { from, to, protocol, port, ipv6, live } = arguments;
    let (from, to) = (from.clone(), to.clone());
    let request = TraceRequest { from, to, protocol: *protocol, port: *port, ipv6: *ipv6 };
    let is_outside = request.from.starts_with("outside/");
    let from = &request.from;
    anyhow::ensure!(!is_outside || request.client().is_some(), "{from}: expected outside/ADDRESS[:PORT]");
    if *live {
        anyhow::ensure!(
            *protocol != SCTP,
            "--live sends by tcp or udp: no socket here sends a single SCTP packet"
        );
        return ask_live(source, &request).await;
    }
    let mut report = source.trace(&request).await?;
    for way in &mut report.ways {
        follow(source, way, Source::trace_tunnelled).await?;
    }
    Ok(report)
}

/// All nodes wait for the packet before it is sent. Where `source` may ask no others, its own part is shown.
async fn ask_live(source: &Source, request: &TraceRequest) -> anyhow::Result<TraceReport> {
    let own = source.status().await?.node_id;
    let nodes = nodes::all(source).await.unwrap_or_default();
    let others: Vec<Asked> = nodes.into_iter().filter(|node| node.node_id != own).collect();
    // One that can't wait is told of if the packet goes there.
    let mark = async |port| {
        let mark = async |source: &Source| source.trace_mark(request.protocol, port).await;
        drop(gather(&others, &mark).await);
    };
    mark(request.port).await;
    let traced = source.trace_live(request).await;
    let followed = match traced {
        Ok(mut report) => follow_all(source, &mut report).await.map(|()| report),
        Err(error) => Err(error),
    };
    mark(0).await;
    followed
}

async fn follow_all(source: &Source, report: &mut TraceReport) -> anyhow::Result<()> {
    for way in &mut report.ways {
        follow(source, way, Source::trace_marked).await?;
    }
    Ok(())
}

async fn follow(
    source: &Source,
    way: &mut TraceWay,
    go_on: impl AsyncFn(&Source, &TunnelledPacket) -> anyhow::Result<TraceReport>,
) -> anyhow::Result<()> {
    for _ in 0..MAX_NODES {
        let TraceEnd::Tunnel(packet) = way.end else { return Ok(()) };
        let report = match go_on(&source.of_node(&packet.to.to_string()), &packet).await {
            Ok(report) => report,
            Err(error) => {
                let step = TraceStep { node: packet.to, at: "not asked".into(), says: format!("{error:#}") };
                way.steps.push(step);
                return Ok(());
            }
        };
        let rest = report.ways.into_iter().next().context("a trace without a way")?;
        way.steps.extend(rest.steps);
        way.end = rest.end;
    }
    Ok(())
}

/// A block per way: a line per step, then how it ends.
pub fn text(report: &TraceReport) -> String {
    let ways: Vec<String> = report.ways.iter().map(way).collect();
    ways.join("\n")
}

fn way(way: &TraceWay) -> String {
    let mut out = String::new();
    if let Some(chance) = way.chance {
        let percent = f64::from(chance.places) * 100.0 / f64::from(chance.of.max(1));
        writeln!(out, "With a chance of {percent:.1} %:").expect("a string takes all");
    }
    let width = way.steps.iter().map(|step| step.at.len()).max().unwrap_or(0);
    let mut node = None;
    for step in &way.steps {
        if node.replace(step.node) != Some(step.node) {
            writeln!(out, "node {}", step.node).expect("a string takes all");
        }
        writeln!(out, "  {:<width$}   {}", step.at, step.says).expect("a string takes all");
    }
    out + "=> " + &end(&way.end) + "\n"
}

fn end(end: &TraceEnd) -> String {
    match end {
        TraceEnd::Sandbox { destination, interface, task } if task.is_empty() => {
            format!("into the sandbox behind {interface}, to {destination}")
        }
        TraceEnd::Sandbox { destination, interface, task } => {
            format!("into the sandbox of {task} behind {interface}, to {destination}")
        }
        TraceEnd::Tunnel(packet) => format!("goes on at node {}, which did not tell", packet.to),
        TraceEnd::Host => "left to the node's own network stack: no map decides".to_owned(),
        TraceEnd::NoRoute { program } => format!("{program} answers that there is no route"),
        TraceEnd::Dropped { program, reason } => format!("dropped by {program}: {reason}"),
        TraceEnd::Refused { program, reason } => {
            format!("the call fails with \"connection refused\"; {program} counts {reason}")
        }
    }
}

fn parse_protocol(text: &str) -> Result<u8, String> {
    match text {
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "sctp" => Ok(SCTP),
        _ => Err("expected tcp, udp or sctp".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use dataplane_model::inspect::TraceChance;

    use super::*;

    #[test]
    fn a_way_is_told_node_by_node() {
        let step = |node, at: &str, says: &str| TraceStep {
            node: Ipv4Addr::new(198, 18, 0, node).into(),
            at: at.to_owned(),
            says: says.to_owned(),
        };
        let steps = vec![
            step(11, "ring", "place 0 of 2 is 10.0.0.6's"),
            step(11, "tunnel", "to 198.18.0.12 with VNI 4096"),
            step(12, "target port", "published 8080 is 80"),
        ];
        let destination = "10.0.0.6:80".parse().unwrap();
        let interface = "mv1".to_owned();
        let there = TraceWay {
            chance: None,
            steps: steps.clone(),
            end: TraceEnd::Sandbox { destination, interface, task: "web.2.b".to_owned() },
        };
        let packet = TunnelledPacket {
            from: Ipv4Addr::new(198, 18, 0, 11).into(),
            to: Ipv4Addr::new(198, 18, 0, 12).into(),
            vni: 4097,
            endpoint: Ipv4Addr::new(10, 0, 1, 6),
            source: "10.0.1.5:40000".parse().unwrap(),
            destination,
            protocol: 6,
        };
        let on_its_way = TraceWay {
            chance: Some(TraceChance { places: 1, of: 3 }),
            steps: steps[..2].to_vec(),
            end: TraceEnd::Tunnel(packet),
        };
        let expected = "\
node 198.18.0.11
  ring          place 0 of 2 is 10.0.0.6's
  tunnel        to 198.18.0.12 with VNI 4096
node 198.18.0.12
  target port   published 8080 is 80
=> into the sandbox of web.2.b behind mv1, to 10.0.0.6:80

With a chance of 33.3 %:
node 198.18.0.11
  ring     place 0 of 2 is 10.0.0.6's
  tunnel   to 198.18.0.12 with VNI 4096
=> goes on at node 198.18.0.12, which did not tell
";
        assert_eq!(text(&TraceReport { ways: vec![there, on_its_way] }), expected);
    }

    #[test]
    fn arguments_are_checked() {
        assert_eq!(parse_protocol("udp"), Ok(17));
        assert_eq!(parse_protocol("sctp"), Ok(132));
        assert!(parse_protocol("icmp").is_err());
    }
}
