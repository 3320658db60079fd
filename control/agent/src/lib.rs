//! The worker half of a node: assignments, task machine, NodeView.
