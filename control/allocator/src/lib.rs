//! Leader loop: gives networks, services and tasks their VNIs, subnets, addresses and ports.
