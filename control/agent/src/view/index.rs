//! Which endpoints a service has, and which are at an address.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use control_model::assignment::EndpointView;
use control_model::object::NetworkAttachment;
use control_model::{NetworkId, ServiceId, TaskId};
use dataplane_model::Table;

/// An address in a network.
pub(super) type Place = (NetworkId, Ipv4Addr);

const FIRST: TaskId = TaskId::from_bits(u128::MIN);
const LAST: TaskId = TaskId::from_bits(u128::MAX);

/// The endpoints of a set, by what is made of them.
#[derive(Debug, Default)]
pub(super) struct Index {
    of_service: BTreeSet<(ServiceId, TaskId)>,
    /// Several endpoints may say that they have an address: one that comes where another goes.
    at_place: BTreeSet<(Place, TaskId)>,
}

/// What endpoints that changed were in, or are.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub services: BTreeSet<ServiceId>,
    pub places: BTreeSet<Place>,
}

impl Index {
    /// Puts the rows that `after` has of `endpoints` in the place of those of `before`.
    pub(super) fn replace(
        &mut self,
        endpoints: &BTreeSet<TaskId>,
        before: &Table<TaskId, EndpointView>,
        after: &Table<TaskId, EndpointView>,
    ) -> Touched {
        let mut touched = Touched::default();
        for id in endpoints {
            if let Some(endpoint) = before.get(id) {
                touched.note(endpoint);
                self.of_service.remove(&(endpoint.service, *id));
                for place in places(endpoint) {
                    self.at_place.remove(&(place, *id));
                }
            }
            if let Some(endpoint) = after.get(id) {
                touched.note(endpoint);
                self.of_service.insert((endpoint.service, *id));
                self.at_place.extend(places(endpoint).map(|place| (place, *id)));
            }
        }
        touched
    }

    /// In the order of their ids.
    pub(super) fn of_service(&self, id: ServiceId) -> impl Iterator<Item = TaskId> {
        self.of_service.range((id, FIRST)..=(id, LAST)).map(|(_, task)| *task)
    }

    /// In the order of their ids.
    pub(super) fn at_place(&self, place: Place) -> impl DoubleEndedIterator<Item = TaskId> {
        self.at_place.range((place, FIRST)..=(place, LAST)).map(|(_, task)| *task)
    }
}

impl Touched {
    fn note(&mut self, endpoint: &EndpointView) {
        self.services.insert(endpoint.service);
        self.places.extend(places(endpoint));
    }
}

fn places(endpoint: &EndpointView) -> impl Iterator<Item = Place> {
    endpoint.attachments.iter().filter_map(place_of)
}

/// `None` for an address that is not of IPv4: endpoints are named by these.
pub(super) fn place_of(attachment: &NetworkAttachment) -> Option<Place> {
    let IpAddr::V4(address) = attachment.address.ip() else { return None };
    Some((attachment.network, address))
}
