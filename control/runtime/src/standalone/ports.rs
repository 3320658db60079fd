//! Numbers for the published ports of a container's run. Pure.

use control_model::spec::{PortConfig, Protocol, PublishMode};

/// Where numbers come from that nobody has asked for: the last quarter, as in Docker.
const FIRST_FREE: u16 = 49_153;

/// Who has a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taker {
    /// A service or another container.
    Published,
    /// A process of the node.
    Process,
}

/// A number that was asked for is not to be had. `Display` is Docker's sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum PortTaken {
    #[error("Bind for 0.0.0.0:{0} failed: port is already allocated")]
    Published(u16),
    #[error("failed to bind host port 0.0.0.0:{0}/{1}: address already in use")]
    Process(u16, &'static str),
    #[error("all ports from {FIRST_FREE} on are allocated")]
    None,
}

/// `wanted` with numbers for those that have none; `taker` says who has one.
pub(super) fn allocate(
    wanted: &[PortConfig],
    taker: impl Fn(Protocol, u16) -> Option<Taker>,
) -> Result<Vec<PortConfig>, PortTaken> {
    let (asked, open): (Vec<_>, Vec<_>) = wanted.iter().cloned().partition(|port| port.published != 0);
    let mut given: Vec<PortConfig> = Vec::with_capacity(wanted.len());
    for port in asked {
        let own = given.iter().any(|one| (one.protocol, one.published) == (port.protocol, port.published));
        let taker = if own { Some(Taker::Published) } else { taker(port.protocol, port.published) };
        match taker {
            None => given.push(port),
            Some(Taker::Published) => return Err(PortTaken::Published(port.published)),
            Some(Taker::Process) => return Err(PortTaken::Process(port.published, word(port.protocol))),
        }
    }
    for port in open {
        let is_free = |number: &u16| {
            taker(port.protocol, *number).is_none()
                && given.iter().all(|one| (one.protocol, one.published) != (port.protocol, *number))
        };
        let number = (FIRST_FREE..=u16::MAX).find(is_free).ok_or(PortTaken::None)?;
        given.push(PortConfig { published: number, ..port });
    }
    Ok(given)
}

/// Those of `80/tcp` that are not in `ports`, each with a number that is still to be given.
pub(super) fn unpublished(exposed: &[String], ports: &[PortConfig]) -> Vec<PortConfig> {
    let port = |key: &String| {
        let (number, protocol) = key.split_once('/').unwrap_or((key, "tcp"));
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => return None,
        };
        Some(PortConfig::new(protocol, number.parse().ok()?, 0, PublishMode::Host))
    };
    let is_new = |port: &PortConfig| {
        ports.iter().all(|one| (one.protocol, one.target) != (port.protocol, port.target))
    };
    exposed.iter().filter_map(port).filter(is_new).collect()
}

pub(super) fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(target: u16, published: u16) -> PortConfig {
        PortConfig::new(Protocol::Tcp, target, published, PublishMode::Host)
    }

    fn numbers(wanted: &[PortConfig], taken: &[(u16, Taker)]) -> Result<Vec<(u16, u16)>, PortTaken> {
        let taker = |protocol, number: u16| {
            let of_number = taken.iter().find(|(one, _)| *one == number && protocol == Protocol::Tcp);
            of_number.map(|(_, taker)| *taker)
        };
        let given = allocate(wanted, taker)?;
        Ok(given.iter().map(|port| (port.published, port.target)).collect())
    }

    #[test]
    fn who_asks_for_none_gets_the_first_that_is_free() {
        let taken = [(49_153, Taker::Published), (49_155, Taker::Process)];
        let wanted = [port(80, 0), port(81, 8081), port(82, 0), port(83, 49_154)];
        let expected = [(8081, 81), (49_154, 83), (49_156, 80), (49_157, 82)];
        assert_eq!(numbers(&wanted, &taken).unwrap(), expected);
    }

    #[test]
    fn what_is_taken_is_refused_in_dockers_words() {
        let words = |wanted: &[PortConfig], taken: &[(u16, Taker)]| {
            numbers(wanted, taken).expect_err("taken").to_string()
        };
        assert_eq!(
            words(&[port(80, 8080)], &[(8080, Taker::Published)]),
            "Bind for 0.0.0.0:8080 failed: port is already allocated"
        );
        assert_eq!(
            words(&[port(80, 8080)], &[(8080, Taker::Process)]),
            "failed to bind host port 0.0.0.0:8080/tcp: address already in use"
        );
        assert!(words(&[port(80, 90), port(81, 90)], &[]).ends_with("port is already allocated"));
        let udp = PortConfig { protocol: Protocol::Udp, ..port(80, 8080) };
        assert!(numbers(&[udp], &[(8080, Taker::Published)]).is_ok());
    }

    #[test]
    fn what_is_exposed_and_not_published_is_found() {
        let exposed = ["80/tcp", "53/udp", "81", "x/tcp", "1/none"].map(str::to_owned);
        let found = unpublished(&exposed, &[port(80, 8080)]);
        let shown: Vec<_> = found.iter().map(|port| (port.target, word(port.protocol))).collect();
        assert_eq!(shown, [(53, "udp"), (81, "tcp")]);
    }
}
