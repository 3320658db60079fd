#![no_std]
//! Empty on the host: the programs are the binaries of this package.
