//! Which containers `docker ps --filter` shows (moby `daemon/list.go`).

use control_manager::control::labels_match;
use control_model::Timestamp;

use super::{find, networks, port_key, state_word};
use crate::context::Api;
use crate::convert::words::Words;
use crate::dto::container::NetworkEndpoint;
use crate::engine::{Container, EngineError};
use crate::error::ApiError;
use crate::query::{Filters, Query};

const ACCEPTED: [&str; 14] = [
    "ancestor", "before", "exited", "expose", "health", "id", "is-task", "label", "name", "network",
    "publish", "since", "status", "volume",
];
/// States that may be asked for, Docker's.
const STATES: [&str; 7] = ["created", "running", "paused", "restarting", "removing", "exited", "dead"];
/// Health that may be asked for, Docker's.
const HEALTHS: [&str; 4] = ["none", "starting", "healthy", "unhealthy"];

/// What a list is to show.
pub struct ContainerFilter {
    filters: Filters,
    /// Ids of images, of `ancestor`.
    images: Vec<String>,
    exit_codes: Vec<i32>,
    before: Option<Timestamp>,
    since: Option<Timestamp>,
    is_task: Option<bool>,
}

impl ContainerFilter {
    /// The filters of `query`; those that name another container, one of `all`.
    pub async fn of(api: &Api, query: &Query, all: &[Container]) -> Result<Self, ApiError> {
        let filters = query.filters(&ACCEPTED)?;
        known(&filters, "status", &STATES)?;
        known(&filters, "health", &HEALTHS)?;
        let made = |key: &str| {
            let others = filters.get(key).iter().map(|term| find(all, term).map(|other| other.created));
            others.collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            images: images(api, filters.get("ancestor")).await?,
            exit_codes: exit_codes(&filters)?,
            before: made("before")?.into_iter().min(),
            since: made("since")?.into_iter().max(),
            is_task: filters.flag("is-task")?,
            filters,
        })
    }

    /// Whether it asks for containers that have ended, whatever else the query says.
    pub fn wants_ended(&self) -> bool {
        !self.filters.get("status").is_empty() || !self.exit_codes.is_empty()
    }

    /// Whether `container` is one of those.
    pub fn lets(&self, api: &Api, container: &Container) -> bool {
        self.lets_by_itself(container) && self.lets_by_networks(api, container)
    }

    fn lets_by_itself(&self, container: &Container) -> bool {
        let has_ended = !container.running && container.started.is_some();
        self.any("id", |id| container.id.starts_with(id))
            && self.any("name", |name| container.name.contains(name.trim_start_matches('/')))
            && self.any("status", |status| status == state_word(container))
            && self.any("health", |health| {
                health == container.health.as_ref().map_or("none", |h| h.status.word())
            })
            && self.any("ancestor", |_| self.images.contains(&container.image_id))
            && self.any("exited", |_| has_ended && self.exit_codes.contains(&container.exit_code))
            && self.any("volume", |of| container.mounts.iter().any(|m| m.name == of || m.target == of))
            && self.any("publish", |port| {
                container.host_ports.iter().any(|p| is_port(port, p.published, p.protocol.word()))
            })
            && self.any("expose", |port| exposes(container, port))
            && self.before.is_none_or(|before| container.created < before)
            && self.since.is_none_or(|since| container.created > since)
            && self.is_task.is_none_or(|wanted| wanted == container.own.is_none())
            && labels_match(&container.labels, &self.filters.labels("label"))
    }

    /// By its name, or the beginning of its id.
    fn lets_by_networks(&self, api: &Api, container: &Container) -> bool {
        let wanted = self.filters.get("network");
        wanted.is_empty() || {
            let attached = networks(api, container).networks;
            let is_it = |(name, at): (&String, &NetworkEndpoint)| {
                wanted.iter().any(|term| {
                    term == name || (!term.is_empty() && at.network_id.starts_with(term.as_str()))
                })
            };
            attached.iter().any(is_it)
        }
    }

    fn any(&self, key: &str, test: impl Fn(&str) -> bool) -> bool {
        let wanted = self.filters.get(key);
        wanted.is_empty() || wanted.iter().any(|value| test(value))
    }
}

fn known(filters: &Filters, key: &str, words: &[&str]) -> Result<(), ApiError> {
    match filters.get(key).iter().find(|word| !words.contains(&word.as_str())) {
        Some(unknown) => Err(ApiError::invalid(format!("invalid filter '{key}={unknown}'"))),
        None => Ok(()),
    }
}

fn exit_codes(filters: &Filters) -> Result<Vec<i32>, ApiError> {
    let codes = filters.get("exited").iter().map(|text| {
        let malformed = || ApiError::invalid(format!("invalid filter 'exited={text}'"));
        text.parse().map_err(|_| malformed())
    });
    codes.collect()
}

/// The ids of those that are there.
async fn images(api: &Api, names: &[String]) -> Result<Vec<String>, ApiError> {
    let engine = api.local_engine()?;
    let mut ids = Vec::new();
    for name in names {
        match engine.image(name).await {
            Ok(image) => ids.push(image.id),
            Err(EngineError::NoSuchImage(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(ids)
}

fn exposes(container: &Container, port: &str) -> bool {
    let exposed = container.exposed_ports.iter().cloned();
    let mut all = exposed.chain(container.host_ports.iter().map(port_key));
    all.any(|key| {
        let (number, protocol) = key.split_once('/').unwrap_or((&key, "tcp"));
        number.parse().is_ok_and(|number| is_port(port, number, protocol))
    })
}

/// Whether `text`, `80`, `80/udp` or `80-90/tcp`, means this one. None said is TCP.
fn is_port(text: &str, number: u16, protocol: &str) -> bool {
    let (numbers, wanted) = text.split_once('/').unwrap_or((text, "tcp"));
    let (from, upto) = numbers.split_once('-').unwrap_or((numbers, numbers));
    let is_within = from.parse().is_ok_and(|from: u16| from <= number)
        && upto.parse().is_ok_and(|upto: u16| number <= upto);
    is_within && wanted == protocol
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_numbers_and_ranges_of_a_protocol() {
        for (text, number, protocol, expected) in [
            ("80", 80, "tcp", true),
            ("80", 80, "udp", false),
            ("53/udp", 53, "udp", true),
            ("80-90", 85, "tcp", true),
            ("80-90/tcp", 91, "tcp", false),
            ("x", 80, "tcp", false),
        ] {
            assert_eq!(is_port(text, number, protocol), expected, "{text}");
        }
    }
}
