mod cluster;
mod conformance;
mod faults;
mod restart;
mod rig;
