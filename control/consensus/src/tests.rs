mod cluster;
mod conformance;
mod faults;
mod quorum;
mod recovery;
mod restart;
mod rig;
