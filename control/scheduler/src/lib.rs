//! Leader loop: places pending tasks on nodes and explains refusals.
