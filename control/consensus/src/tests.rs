mod cluster;
mod conformance;
mod faults;
mod quorum;
mod restart;
mod rig;
