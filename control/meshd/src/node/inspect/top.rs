//! `meshctl top`: two looks at the maps, and whose ports these are.

use std::time::Duration;

use control_api::node::InspectError;
use dataplane_kernel::inspect::TopReading;
use dataplane_model::NodeView;
use dataplane_model::inspect::TopReport;
use dataplane_model::kernel_state::protocol_name;
use tokio::time::sleep;

use super::read;
use crate::host::Host;
use crate::node::swarm::Swarm;

/// Between the two.
const PERIOD: Duration = Duration::from_secs(1);

/// Takes the period, and two passes over the flow tables.
pub async fn top(host: &Host, swarm: Option<&Swarm>) -> Result<TopReport, InspectError> {
    let before = read(host, TopReading::take).await?;
    sleep(PERIOD).await;
    let mut report = read(host, TopReading::take).await?.since(&before);
    if let Some(view) = swarm.and_then(|swarm| swarm.views.borrow().clone()) {
        for row in &mut report.services {
            row.service = service_of(&view, &row.port).unwrap_or_default();
        }
    }
    Ok(report)
}

/// The name of the service with this published port (`8080/tcp`), or virtual address and port. Networks may share
/// addresses: where several services have it, none is named.
fn service_of(view: &NodeView, port: &str) -> Option<String> {
    let mut found = view.services.values().filter(|service| match port.split_once(':') {
        Some((address, _)) => {
            let address = address.parse().ok();
            service.vips.values().any(|vip| Some(*vip) == address)
        }
        None => service
            .ingress_ports
            .iter()
            .any(|p| format!("{}/{}", p.published, protocol_name(p.protocol)) == port),
    });
    let service = found.next()?;
    found.next().is_none().then(|| service.name.clone())
}
