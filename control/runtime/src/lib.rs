//! Executors: the embedded oci runtime and its image store.
