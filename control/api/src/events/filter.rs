//! Which events a client wants (moby `daemon/events/filter.go`).

use crate::dto::events::Message;
use crate::query::Filters;

/// Actions that say more behind a colon: their beginning is enough to name them.
const WITH_DETAILS: [&str; 3] = ["health_status", "exec_create", "exec_start"];
/// Filters by the id or name of what an event is about, or the beginning of either.
const BY_NAME: [&str; 9] =
    ["daemon", "container", "plugin", "volume", "network", "service", "node", "secret", "config"];

/// Lets through what all filters let through. Values of one filter are alternatives; labels must all be there.
#[derive(Debug, Clone, Default)]
pub struct Filter(Filters);

impl Filter {
    pub fn new(filters: Filters) -> Self {
        Self(filters)
    }

    pub fn lets(&self, message: &Message) -> bool {
        let name = message.actor.attributes.get("name").map_or("", String::as_str);
        let id = message.actor.id.as_str();
        self.lets_action(&message.action)
            && self.is_any("type", &[message.kind])
            && self.is_any("scope", &[message.scope])
            && BY_NAME.iter().all(|key| self.begins_any(key, &[id, name]))
            && self.lets_image(message)
            && self.lets_labels(message)
    }

    fn lets_action(&self, action: &str) -> bool {
        let wanted = self.0.get("event");
        if wanted.iter().any(|wanted| WITH_DETAILS.contains(&wanted.as_str())) {
            self.begins_any("event", &[action])
        } else {
            self.is_any("event", &[action])
        }
    }

    /// An image by its id or name, a container by its image's; with or without a tag.
    fn lets_image(&self, message: &Message) -> bool {
        let named_by = if message.kind == "image" { "name" } else { "image" };
        let name = message.actor.attributes.get(named_by).map_or("", String::as_str);
        let id = message.actor.id.as_str();
        self.is_any("image", &[id, name, without_tag(id), without_tag(name)])
    }

    fn lets_labels(&self, message: &Message) -> bool {
        self.0.get("label").iter().all(|label| {
            let (name, value) = label.split_once('=').map_or((label.as_str(), None), |(n, v)| (n, Some(v)));
            let found = message.actor.attributes.get(name);
            found.is_some_and(|found| value.is_none_or(|value| value == found))
        })
    }

    /// One of `texts` is a value of the filter, or there is no such filter.
    fn is_any(&self, key: &str, texts: &[&str]) -> bool {
        let wanted = self.0.get(key);
        wanted.is_empty() || wanted.iter().any(|wanted| texts.contains(&wanted.as_str()))
    }

    /// One of `texts` begins with a value of the filter, or there is no such filter.
    fn begins_any(&self, key: &str, texts: &[&str]) -> bool {
        let wanted = self.0.get(key);
        wanted.is_empty()
            || wanted.iter().any(|wanted| texts.iter().any(|text| text.starts_with(wanted.as_str())))
    }
}

fn without_tag(reference: &str) -> &str {
    let name = reference.split_once('@').map_or(reference, |(name, _)| name);
    match name.rsplit_once(':') {
        // A port is no tag.
        Some((before, tag)) if !tag.contains('/') => before,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use control_model::Timestamp;

    use super::super::message;
    use super::*;
    use crate::dto::events::Actor;

    fn made(kind: &'static str, action: &str, id: &str, attributes: &[(&str, &str)]) -> Message {
        let attributes: BTreeMap<_, _> =
            attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let scope = if kind == "service" { "swarm" } else { "local" };
        message((Timestamp(1), scope), (kind, action.into()), Actor { id: id.into(), attributes })
    }

    #[test]
    fn filters_let_through_what_docker_lets_through() {
        let died = made(
            "container",
            "die",
            "abc123",
            &[("image", "reg:5000/web:v1"), ("name", "web.1"), ("a", "b")],
        );
        let healthy = made("container", "health_status: healthy", "abc123", &[("name", "web.1")]);
        let pulled = made("image", "pull", "web:v1", &[("name", "web")]);
        let updated = made("service", "update", "s7", &[("name", "web")]);
        let all = [&died, &healthy, &pulled, &updated];
        for (filters, expected) in [
            ("{}", "1111"),
            (r#"{"type":["container"]}"#, "1100"),
            (r#"{"type":["container","service"]}"#, "1101"),
            (r#"{"event":["die"]}"#, "1000"),
            (r#"{"event":["health_status"]}"#, "0100"),
            (r#"{"scope":["swarm"]}"#, "0001"),
            (r#"{"container":["abc"]}"#, "1100"),
            (r#"{"service":["we"]}"#, "1111"),
            (r#"{"service":["s7"]}"#, "0001"),
            (r#"{"image":["web"]}"#, "0010"),
            (r#"{"image":["reg:5000/web"]}"#, "1000"),
            (r#"{"image":["web:v1"]}"#, "0010"),
            (r#"{"label":["a=b"]}"#, "1000"),
            (r#"{"label":["a"],"event":["start"]}"#, "0000"),
            (r#"{"label":["a=c"]}"#, "0000"),
        ] {
            let filter = Filter::new(Filters::parse(filters).expect("filters"));
            let let_through: String =
                all.iter().map(|message| if filter.lets(message) { '1' } else { '0' }).collect();
            assert_eq!(let_through, expected, "{filters}");
        }
    }
}
