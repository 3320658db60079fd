//! Packet parsing, hashing, rewriting and checksums, shared by the BPF programs and host tests.
