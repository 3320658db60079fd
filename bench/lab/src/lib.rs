//! Clusters in network namespaces on one machine, for the demo, tests and benches.
