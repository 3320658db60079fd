//! Whom a command asks: this node, one of the cluster, or all of them at once.

use dataplane_model::inspect::{NodeAnswer, NodeOutcome};
use futures::StreamExt as _;
use futures::stream;

use crate::source::Source;

/// Nodes that are asked at a time: each is a connection to the manager, and an answer in its memory.
const AT_ONCE: usize = 16;

/// A node and the way to it.
pub struct Asked {
    pub hostname: String,
    pub node_id: String,
    pub source: Source,
}

/// Every node of the cluster.
pub async fn all(own: &Source) -> anyhow::Result<Vec<Asked>> {
    let rows = own.nodes().await?;
    let asked = rows.into_iter().map(|row| {
        let source = own.of_node(&row.node_id);
        Asked { hostname: row.hostname, node_id: row.node_id, source }
    });
    Ok(asked.collect())
}

/// What each of them says, in their order.
pub async fn gather<T>(
    nodes: &[Asked],
    ask: &impl AsyncFn(&Source) -> anyhow::Result<T>,
) -> Vec<NodeAnswer<T>> {
    let answers = nodes.iter().map(async |node| {
        let outcome = match ask(&node.source).await {
            Ok(answer) => NodeOutcome::Answer(answer),
            Err(error) => NodeOutcome::Error(format!("{error:#}")),
        };
        NodeAnswer { hostname: node.hostname.clone(), node_id: node.node_id.clone(), outcome }
    });
    stream::iter(answers).buffered(AT_ONCE).collect().await
}

/// A heading per node, then what it says or why it does not.
pub fn text<T>(answers: &[NodeAnswer<T>], to_text: impl Fn(&T) -> String) -> String {
    let blocks = answers.iter().map(|NodeAnswer { hostname, node_id, outcome }| {
        let said = match outcome {
            NodeOutcome::Answer(answer) => to_text(answer),
            NodeOutcome::Error(error) => format!("no answer: {error}\n"),
        };
        format!("== {hostname} ({node_id})\n{said}")
    });
    blocks.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_nothing_is_named_with_the_reason() {
        let answer = |hostname: &str, outcome| NodeAnswer {
            hostname: hostname.to_owned(),
            node_id: format!("id-{hostname}"),
            outcome,
        };
        let answers = [
            answer("m1", NodeOutcome::Answer(3)),
            answer("w1", NodeOutcome::Error("no manager has a session with it".to_owned())),
        ];
        let expected = "\
== m1 (id-m1)
3 rows

== w1 (id-w1)
no answer: no manager has a session with it
";
        assert_eq!(text(&answers, |n| format!("{n} rows\n")), expected);
        let json = serde_json::to_string(&answers).unwrap();
        assert_eq!(
            json,
            r#"[{"hostname":"m1","node_id":"id-m1","answer":3},{"hostname":"w1","node_id":"id-w1","error":"no manager has a session with it"}]"#
        );
    }
}
