//! Leader loops: services into tasks, restarts, rolling updates, drains, history.
