//! Asks the DNS process what it serves and how it answers: a connection of its own beside the one that feeds it.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use dataplane_model::SandboxId;
use dataplane_model::inspect::{DnsName, DnsQueryReport, DnsRecord, DnsSandbox, DnsZoneReport};
use hickory_proto::op::{Message, MessageType, OpCode, Query as Asking};
use hickory_proto::rr::{Name, Record, RecordType};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::protocol::{
    Ack, Asked, Command, FrameError, PROTOCOL_VERSION, Query, Shown, ShownSandbox, read_frame, write_frame,
};
use crate::zones::{Forwarding, NetworkZone};

/// More than a forwarded query may take (3.5 s).
const PATIENCE: Duration = Duration::from_secs(5);

/// Id of the query that is asked on a task's behalf: it travels by no network, nobody can guess it.
const QUERY_ID: u16 = 1;

/// Why the DNS process did not tell.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    #[error("no DNS process answers")]
    Unreachable(#[source] io::Error),
    #[error("the DNS process did not answer within {PATIENCE:?}")]
    TimedOut,
    #[error("the DNS process speaks version {0} of its protocol, not {PROTOCOL_VERSION}; meshd replaces it")]
    OtherVersion(u32),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("{0:?} is not a domain name")]
    NotAName(String),
    #[error("there is no record type {0}")]
    NoSuchType(String),
    #[error("the DNS process gave no message that can be read")]
    Unreadable,
    #[error("{0}")]
    Refused(String),
}

/// What the process at `socket` serves: to one sandbox or to all, in one network or in all. Sandboxes have no task names:
/// the process knows none.
pub async fn zone(
    socket: &Path,
    sandbox: Option<&SandboxId>,
    network: Option<&str>,
) -> Result<DnsZoneReport, InspectError> {
    let shown: Shown = ask(socket, &Command::Show(sandbox.cloned())).await?;
    Ok(zone_report(&shown, network))
}

/// What a task in `sandbox` gets for `name`, as it is: search domains are its own affair.
pub async fn query(
    socket: &Path,
    sandbox: &SandboxId,
    name: &str,
    record_type: &str,
) -> Result<DnsQueryReport, InspectError> {
    let message = query_message(name, record_type)?;
    let command = Command::Query(Query { sandbox: sandbox.clone(), message });
    let asked: Result<Asked, String> = ask(socket, &command).await?;
    query_report(sandbox, (name, record_type), &asked.map_err(InspectError::Refused)?)
}

async fn ask<T: DeserializeOwned>(socket: &Path, command: &Command) -> Result<T, InspectError> {
    let asking = async {
        let mut stream = UnixStream::connect(socket).await.map_err(InspectError::Unreachable)?;
        let ended = || FrameError::Io(io::ErrorKind::UnexpectedEof.into());
        let hello: Ack = read_frame(&mut stream).await?.ok_or_else(ended)?;
        if hello.protocol != PROTOCOL_VERSION {
            return Err(InspectError::OtherVersion(hello.protocol));
        }
        write_frame(&mut stream, command).await?;
        Ok(read_frame(&mut stream).await?.ok_or_else(ended)?)
    };
    timeout(PATIENCE, asking).await.map_err(|_| InspectError::TimedOut)?
}

fn zone_report(shown: &Shown, network: Option<&str>) -> DnsZoneReport {
    let is_meant = |name: &str| network.is_none_or(|network| network.eq_ignore_ascii_case(name));
    let of_network = |sandbox: &ShownSandbox| sandbox.networks.iter().any(|name| is_meant(name));
    let sandboxes = shown.sandboxes.iter().filter(|(_, sandbox)| network.is_none() || of_network(sandbox));
    // One policy holds for the whole node.
    let ttl_s = shown.sandboxes.values().next().map_or(0, |sandbox| sandbox.ttl.found_s);
    let networks = shown.networks.values().filter(|zone| is_meant(&zone.name));
    DnsZoneReport {
        revision: shown.revision,
        sandboxes: sandboxes.map(|(id, sandbox)| sandbox_row(id, sandbox)).collect(),
        names: networks.flat_map(|zone| names_of(zone, ttl_s)).collect(),
    }
}

fn sandbox_row(id: &SandboxId, sandbox: &ShownSandbox) -> DnsSandbox {
    let forwarding = match &sandbox.forwarding {
        Forwarding::Forbidden => "nowhere".to_owned(),
        Forwarding::Node => "node".to_owned(),
        Forwarding::Servers(servers) => texts(servers).join(", "),
    };
    DnsSandbox {
        sandbox: id.0.clone(),
        task: String::new(),
        networks: sandbox.networks.clone(),
        forwarding,
        keeps_short_names: sandbox.keeps_short_names,
    }
}

/// By name, then by port and by address.
fn names_of(zone: &NetworkZone, ttl_s: u32) -> Vec<DnsName> {
    let row = |name: String, record_type: &str, values| DnsName {
        network: zone.name.clone(),
        name,
        record_type: record_type.to_owned(),
        values,
        ttl_s,
    };
    let mut rows = Vec::new();
    for (name, addresses) in &zone.names {
        let (v4, v6) = addresses.split_at(addresses.partition_point(IpAddr::is_ipv4));
        for (record_type, addresses) in [("A", v4), ("AAAA", v6)] {
            if !addresses.is_empty() {
                rows.push(row(name.clone(), record_type, texts(addresses)));
            }
        }
        if addresses.is_empty() {
            rows.push(row(name.clone(), "", Vec::new()));
        }
        for port in zone.ports.get(name).into_iter().flatten() {
            let name = format!("_{}._{}.{name}", port.label, port.protocol);
            rows.push(row(name, "SRV", vec![port.port.to_string()]));
        }
    }
    for (address, name) in &zone.reverse {
        let name = vec![format!("{name}.{}", zone.name)];
        rows.push(row(Name::from(*address).to_string(), "PTR", name));
    }
    rows
}

fn texts(addresses: &[IpAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

fn query_message(name: &str, record_type: &str) -> Result<Vec<u8>, InspectError> {
    let not_a_name = || InspectError::NotAName(name.to_owned());
    let mut full = Name::from_utf8(name).map_err(|_| not_a_name())?;
    full.set_fqdn(true);
    let record_type: RecordType = record_type
        .to_ascii_uppercase()
        .parse()
        .map_err(|_| InspectError::NoSuchType(record_type.to_owned()))?;
    let mut message = Message::new(QUERY_ID, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Asking::query(full, record_type));
    message.to_vec().map_err(|_| not_a_name())
}

fn query_report(
    sandbox: &SandboxId,
    (name, record_type): (&str, &str),
    asked: &Asked,
) -> Result<DnsQueryReport, InspectError> {
    let reply = Message::from_vec(&asked.reply).map_err(|_| InspectError::Unreadable)?;
    let records = |records: &[Record]| records.iter().map(record).collect();
    Ok(DnsQueryReport {
        sandbox: sandbox.0.clone(),
        name: name.to_owned(),
        record_type: record_type.to_ascii_uppercase(),
        code: code_name(&reply),
        way: asked.way,
        took_us: asked.took_us,
        answers: records(&reply.answers),
        authorities: records(&reply.authorities),
        additionals: records(&reply.additionals),
    })
}

/// As other tools write it (IANA, "DNS RCODEs").
fn code_name(reply: &Message) -> String {
    use hickory_proto::op::ResponseCode;
    match reply.metadata.response_code {
        ResponseCode::NoError => "NOERROR".to_owned(),
        ResponseCode::FormErr => "FORMERR".to_owned(),
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::NXDomain => "NXDOMAIN".to_owned(),
        ResponseCode::NotImp => "NOTIMP".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        other => format!("RCODE{}", u16::from(other)),
    }
}

fn record(record: &Record) -> DnsRecord {
    DnsRecord {
        name: record.name.to_string(),
        record_type: record.record_type().to_string(),
        ttl_s: record.ttl,
        data: record.data.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use dataplane_model::inspect::DnsWay;

    use super::*;
    use crate::answer::sandbox_views;
    use crate::testing::node_view;
    use crate::zones::{TtlPolicy, zones_from_view};

    fn shown() -> Shown {
        let zones = zones_from_view(&node_view(), &PathBuf::from("/netns"), TtlPolicy::new(3));
        let mut shown = Shown { revision: 7, ..Shown::default() };
        for (id, view) in sandbox_views(zones) {
            let networks = view.networks.iter().map(|zone| zone.name.clone()).collect();
            for zone in &view.networks {
                shown.networks.insert(zone.name.clone(), NetworkZone::clone(zone));
            }
            let (forwarding, keeps_short_names) = (view.forwarding, view.keeps_short_names);
            let row = ShownSandbox { networks, forwarding, keeps_short_names, ttl: view.ttl };
            shown.sandboxes.insert(id, row);
        }
        shown
    }

    #[test]
    fn each_record_has_its_row() {
        let report = zone_report(&shown(), Some("app"));
        let rows: Vec<String> = report
            .names
            .iter()
            .filter(|row| row.name.contains("web") && !row.name.contains("host") || row.record_type == "PTR")
            .map(|row| format!("{} {} {} {}", row.name, row.record_type, row.values.join(" "), row.ttl_s))
            .collect();
        for expected in
            ["web A 10.0.1.2 3", "_http._tcp.web SRV 80 3", "2.1.0.10.in-addr.arpa. PTR web.app 3"]
        {
            assert!(rows.iter().any(|row| row == expected), "{expected} in {rows:#?}");
        }
        assert!(report.names.iter().all(|row| row.network.eq_ignore_ascii_case("app")));
        let sandboxes: Vec<&str> = report.sandboxes.iter().map(|row| row.sandbox.as_str()).collect();
        assert_eq!(sandboxes, ["client"], "vault is in another network");
    }

    #[test]
    fn what_is_no_question_is_refused() {
        assert!(matches!(query_message("a..b", "A"), Err(InspectError::NotAName(_))));
        assert!(matches!(query_message("a", "NONE-SUCH"), Err(InspectError::NoSuchType(_))));
        assert!(query_message("a", "srv").is_ok());
    }

    #[test]
    fn a_reply_that_cant_be_read_is_said() {
        let asked = Asked { reply: vec![1, 2], way: DnsWay::Nobody, took_us: 1 };
        let report = query_report(&SandboxId("a".to_owned()), ("web", "A"), &asked);
        assert!(matches!(report, Err(InspectError::Unreadable)));
    }

    #[tokio::test]
    async fn a_process_of_another_version_is_not_asked() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("dns.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let process = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let hello = Ack { protocol: PROTOCOL_VERSION - 1, ..Ack::default() };
            write_frame(&mut stream, &hello).await.unwrap();
            read_frame::<Command>(&mut stream).await.unwrap()
        });
        let told = zone(&socket, None, None).await;
        assert!(matches!(told, Err(InspectError::OtherVersion(2))), "{told:?}");
        assert_eq!(process.await.unwrap(), None, "it was asked nothing");
    }
}
