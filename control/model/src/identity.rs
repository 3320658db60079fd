//! Who a node is to another: what the cluster's CA writes into a certificate's subject.

use std::time::Duration;

use crate::id::{ClusterId, NodeId};
use crate::spec::Role;

/// Organizational unit of a manager's certificate (swarmkit `ca.ManagerRole`), and the name that servers prove.
pub const MANAGER_UNIT: &str = "swarm-manager";
/// Organizational unit of a worker's certificate.
pub const WORKER_UNIT: &str = "swarm-worker";

/// A certificate is valid since so long before it was made, for nodes whose clocks are behind (swarmkit's `ca.CertBackdate`).
pub const CERTIFICATE_BACKDATE: Duration = Duration::from_hours(1);

/// The identity in a node certificate: common name, organizational unit, organization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerIdentity {
    pub node_id: NodeId,
    pub role: Role,
    pub cluster_id: ClusterId,
}

/// A certificate's subject is not that of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("certificate subject is not that of a swarm node")]
pub struct ParseIdentityError;

impl PeerIdentity {
    /// Reads the three parts of a subject.
    pub fn from_subject(
        common_name: &str,
        unit: &str,
        organization: &str,
    ) -> Result<Self, ParseIdentityError> {
        let role = match unit {
            MANAGER_UNIT => Role::Manager,
            WORKER_UNIT => Role::Worker,
            _ => return Err(ParseIdentityError),
        };
        let node_id = common_name.parse().map_err(|_| ParseIdentityError)?;
        let cluster_id = organization.parse().map_err(|_| ParseIdentityError)?;
        Ok(Self { node_id, role, cluster_id })
    }

    /// The organizational unit of this role.
    pub fn unit(&self) -> &'static str {
        match self.role {
            Role::Manager => MANAGER_UNIT,
            Role::Worker => WORKER_UNIT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes_and_refuses_the_rest() {
        let me = PeerIdentity {
            node_id: NodeId::from_bits(7),
            role: Role::Manager,
            cluster_id: ClusterId::from_bits(9),
        };
        let (cn, o) = (me.node_id.to_string(), me.cluster_id.to_string());
        assert_eq!(PeerIdentity::from_subject(&cn, me.unit(), &o), Ok(me));
        for (cn, unit, o) in
            [(&*cn, "swarm-ca", &*o), ("node", MANAGER_UNIT, &o), (&cn, MANAGER_UNIT, ""), ("", "", "")]
        {
            assert_eq!(PeerIdentity::from_subject(cn, unit, o), Err(ParseIdentityError));
        }
    }
}
