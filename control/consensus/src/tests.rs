mod cluster;
mod conformance;
mod restart;
mod rig;
