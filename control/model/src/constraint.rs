//! Placement constraints, `key==value` and `key!=value`, as the API checks them and the leader loops apply them
//! (swarmkit `manager/constraint`).

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::object::Node;
use crate::spec::Role;

/// Prefix of keys that name a label of the node's spec.
pub const NODE_LABEL_PREFIX: &str = "node.labels.";
/// Prefix of keys that name a label of the node's engine.
pub const ENGINE_LABEL_PREFIX: &str = "engine.labels.";

/// One parsed constraint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    key: String,
    operator: Operator,
    value: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
}

impl Operator {
    /// In the order in which they are looked for: an expression with both is split at `==`.
    const ALL: [(Self, &str); 2] = [(Self::Equal, "=="), (Self::NotEqual, "!=")];
}

/// Parses all expressions of a placement; the error is the text that Docker's API gives.
pub fn parse_constraints(expressions: &[String]) -> Result<Vec<Constraint>, String> {
    expressions.iter().map(|expression| parse_constraint(expression)).collect()
}

/// Whether `node` satisfies all of `constraints`. A key that no one knows is never satisfied.
pub fn node_matches(constraints: &[Constraint], node: &Node) -> bool {
    constraints.iter().all(|constraint| constraint.matches(node))
}

fn parse_constraint(expression: &str) -> Result<Constraint, String> {
    let split = Operator::ALL.iter().find_map(|(operator, sign)| {
        expression.split_once(sign).map(|(key, value)| (*operator, key.trim(), value.trim()))
    });
    let Some((operator, key, value)) = split else {
        return Err("constraint expected one operator from ==, !=".into());
    };
    if !is_key(key) {
        return Err(format!("key '{key}' is invalid"));
    }
    if !is_value(value) {
        return Err(format!("value '{value}' is invalid"));
    }
    Ok(Constraint { key: key.into(), operator, value: value.into() })
}

/// At least two characters, the first a letter or `_`.
fn is_key(key: &str) -> bool {
    let mut bytes = key.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && key.len() > 1
        && bytes.all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// Not empty, and nothing that is or could become an operator.
fn is_value(value: &str) -> bool {
    const OTHERS: &[u8] = b":-_ \t\n\x0c\r.*()?+[]\\^$|/";
    !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || OTHERS.contains(&b))
}

impl Constraint {
    fn matches(&self, node: &Node) -> bool {
        let key = self.key.to_ascii_lowercase();
        match key.as_str() {
            "node.id" => self.holds(&node.id.to_string()),
            "node.hostname" => self.holds(&node.description.hostname),
            "node.ip" => self.holds_for_address(node.status.addr),
            "node.role" => self.holds(role_word(node.certificate_role)),
            "node.platform.os" => self.holds(&node.description.platform.os),
            "node.platform.arch" => self.holds(&node.description.platform.architecture),
            _ if is_label_key(&key, NODE_LABEL_PREFIX) => {
                // The label's own name keeps its case.
                self.holds(label(&node.spec.labels, &self.key[NODE_LABEL_PREFIX.len()..]))
            }
            _ if is_label_key(&key, ENGINE_LABEL_PREFIX) => {
                self.holds(label(&node.description.engine_labels, &self.key[ENGINE_LABEL_PREFIX.len()..]))
            }
            _ => false,
        }
    }

    fn holds(&self, value: &str) -> bool {
        self.value.eq_ignore_ascii_case(value) == (self.operator == Operator::Equal)
    }

    /// The value is an address or a subnet; anything else never holds.
    fn holds_for_address(&self, addr: Option<IpAddr>) -> bool {
        let wanted = if let Ok(ip) = self.value.parse::<IpAddr>() {
            IpNetwork::from(ip)
        } else if let (true, Ok(subnet)) = (self.value.contains('/'), self.value.parse::<IpNetwork>()) {
            subnet
        } else {
            return false;
        };
        addr.is_some_and(|addr| wanted.contains(addr)) == (self.operator == Operator::Equal)
    }
}

fn is_label_key(key: &str, prefix: &str) -> bool {
    key.len() > prefix.len() && key.starts_with(prefix)
}

/// A label that is absent is the empty text: `!=` holds for it.
fn label<'a>(labels: &'a crate::spec::Labels, name: &str) -> &'a str {
    labels.get(name).map_or("", String::as_str)
}

fn role_word(role: Role) -> &'static str {
    match role {
        Role::Worker => "worker",
        Role::Manager => "manager",
    }
}

/// The value of a spread preference's descriptor on `node`: empty where the label is absent.
/// `None` for a descriptor that is neither a node label nor an engine label.
pub fn spread_value<'a>(descriptor: &str, node: &'a Node) -> Option<&'a str> {
    let key = descriptor.to_ascii_lowercase();
    if is_label_key(&key, NODE_LABEL_PREFIX) {
        Some(label(&node.spec.labels, &descriptor[NODE_LABEL_PREFIX.len()..]))
    } else if is_label_key(&key, ENGINE_LABEL_PREFIX) {
        Some(label(&node.description.engine_labels, &descriptor[ENGINE_LABEL_PREFIX.len()..]))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeId;
    use crate::object::{NodeDescription, NodeStatus};
    use crate::spec::{NodeSpec, Platform};

    fn parse(expression: &str) -> Result<Constraint, String> {
        parse_constraint(expression)
    }

    #[test]
    fn refuses_what_is_no_constraint() {
        for (expression, error) in [
            ("", "constraint expected one operator from ==, !="),
            ("justakey", "constraint expected one operator from ==, !="),
            ("node.role ~ manager", "constraint expected one operator from ==, !="),
            ("node.role=manager", "constraint expected one operator from ==, !="),
            ("9lives==cat", "key '9lives' is invalid"),
            ("n ode==a", "key 'n ode' is invalid"),
            ("n*de==a", "key 'n*de' is invalid"),
            ("n$de!=a", "key 'n$de' is invalid"),
            ("==a", "key '' is invalid"),
            ("n==a", "key 'n' is invalid"),
            ("node==", "value '' is invalid"),
            ("node==  ", "value '' is invalid"),
            ("node==a>b", "value 'a>b' is invalid"),
            ("node===a", "value '=a' is invalid"),
        ] {
            assert_eq!(parse(expression), Err(error.to_owned()), "{expression:?}");
        }
    }

    #[test]
    fn keeps_case_and_inner_spaces_but_not_outer_ones() {
        for (expression, key, value) in [
            (" Node == n1 ", "Node", "n1"),
            ("no.de==n1", "no.de", "n1"),
            ("_node!=_n1", "_node", "_n1"),
            ("node==rack 7", "node", "rack 7"),
            ("node==[x-z]+y*(p|q)/", "node", "[x-z]+y*(p|q)/"),
        ] {
            let parsed = parse(expression).expect(expression);
            assert_eq!((parsed.key.as_str(), parsed.value.as_str()), (key, value));
        }
    }

    fn node() -> Node {
        Node {
            spec: NodeSpec { labels: [("Disk".into(), "ssd".into())].into(), ..NodeSpec::default() },
            description: NodeDescription {
                hostname: "Web-1".into(),
                platform: Platform { os: "linux".into(), architecture: "amd64".into() },
                engine_labels: [("os".into(), "debian".into())].into(),
                ..NodeDescription::default()
            },
            status: NodeStatus { addr: Some([198, 18, 0, 11].into()), ..NodeStatus::default() },
            ..Node::new(NodeId::from_bits(36), Role::Manager)
        }
    }

    #[test]
    fn matches_nodes() {
        for (expression, expected) in [
            ("node.id==0000000000000000000000010", true),
            ("node.id!=0000000000000000000000010", false),
            ("node.hostname==web-1", true),
            ("NODE.HOSTNAME==web-1", true),
            ("node.hostname==web", false),
            ("node.hostname==w*b-1", false),
            ("node.hostname!=web-2", true),
            ("node.role==MANAGER", true),
            ("node.role==worker", false),
            ("node.role!=worker", true),
            ("node.platform.os==linux", true),
            ("node.platform.arch!=amd64", false),
            ("node.labels.Disk==ssd", true),
            ("node.labels.Disk==SSD", true),
            ("node.labels.disk==ssd", false),
            ("node.labels.zone!=a", true),
            ("node.labels.zone==a", false),
            ("engine.labels.os==debian", true),
            ("engine.labels.os!=debian", false),
            ("node.ip==198.18.0.11", true),
            ("node.ip!=198.18.0.11", false),
            ("node.ip==198.18.0.0/24", true),
            ("node.ip!=198.18.1.0/24", true),
            ("node.ip==fe80::/10", false),
            ("node.ip==here", false),
            ("node.ip!=here", false),
            ("node.labels.==a", false),
            ("node.colour==red", false),
            ("node.colour!=red", false),
        ] {
            let constraint = parse(expression).expect(expression);
            assert_eq!(node_matches(&[constraint], &node()), expected, "{expression}");
        }
    }

    #[test]
    fn all_constraints_must_hold() {
        let all = parse_constraints(&["node.role==manager".into(), "node.labels.Disk!=ssd".into()]);
        assert!(!node_matches(&all.expect("both parse"), &node()));
        assert!(node_matches(&[], &node()));
    }

    #[test]
    fn spread_reads_labels_alone() {
        assert_eq!(spread_value("node.labels.Disk", &node()), Some("ssd"));
        assert_eq!(spread_value("engine.labels.os", &node()), Some("debian"));
        assert_eq!(spread_value("node.labels.zone", &node()), Some(""));
        assert_eq!(spread_value("node.hostname", &node()), None);
    }
}
