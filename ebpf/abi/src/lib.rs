//! The contract between the BPF programs and user space: map keys and values, names, limits, drop reasons.
