mod cluster;
mod conformance;
mod faults;
mod former;
mod quorum;
mod recovery;
mod restart;
mod rig;
