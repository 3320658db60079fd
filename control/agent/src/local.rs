//! The sandboxes of containers that no service made, beside those of the node's tasks. Pure.

use std::collections::{BTreeMap, BTreeSet};

use dataplane_model::{NodeView, ProtocolNumber, PublishedPort, Sandbox, SandboxId, Table};

/// What a node has of its own.
#[derive(Debug, Default)]
pub(crate) struct Local {
    rows: Table<SandboxId, Sandbox>,
    is_new: bool,
    /// Tasks that wait for a port that one of these has, and what is to be said of it.
    refused: BTreeMap<SandboxId, String>,
}

impl Local {
    pub fn take(&mut self, rows: Table<SandboxId, Sandbox>) {
        self.is_new |= rows != self.rows;
        self.rows = rows;
    }

    /// Whether a view lacks something of it; not again after that.
    pub fn is_new(&mut self) -> bool {
        std::mem::take(&mut self.is_new)
    }

    /// Puts them into a view of the tasks. A port that one of them has is not a task's.
    pub fn add_to(&mut self, view: &mut NodeView) {
        self.refused.clear();
        let key = |port: &PublishedPort| (port.protocol, port.published);
        let taken: BTreeSet<(ProtocolNumber, u16)> =
            self.rows.values().flat_map(|row| &row.host_ports).map(key).collect();
        let of_tasks = view.sandboxes.iter().filter(|_| !taken.is_empty());
        let clashes: Vec<(SandboxId, Sandbox)> = of_tasks
            .filter(|(_, row)| row.host_ports.iter().any(|port| taken.contains(&key(port))))
            .map(|(id, row)| (id.clone(), row.clone()))
            .collect();
        for (id, mut row) in clashes {
            let port = row.host_ports.iter().find(|port| taken.contains(&key(port)));
            let number = port.map_or(0, |port| port.published);
            let words = format!(
                "driver failed programming external connectivity on endpoint {}: Bind for 0.0.0.0:{number} failed: port is \
                 already allocated",
                row.task_name
            );
            row.host_ports.retain(|port| !taken.contains(&key(port)));
            self.refused.insert(id.clone(), words);
            view.sandboxes.insert(id, row);
        }
        for (id, row) in &self.rows {
            view.sandboxes.insert(id.clone(), row.clone());
        }
    }

    /// Why a task can't have what it asks for.
    pub fn refusal(&self, id: &SandboxId) -> Option<&str> {
        self.refused.get(id).map(String::as_str)
    }
}
