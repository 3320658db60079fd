//! Many endpoints, and many that come and go.

use std::net::IpAddr;

use super::*;

const N_ENDPOINTS: usize = 10_000;
const N_CYCLES: usize = 100_000;
/// Tasks that are made, and removed, by one write.
const PER_WRITE: usize = 100;

impl World {
    fn add_tasks(&mut self, service: &str, n_tasks: usize) -> Vec<TaskId> {
        let service = self.state.service_by_name(service).expect("a service").clone();
        let tasks: Vec<Task> = (0..n_tasks)
            .map(|slot| Task {
                service_name: service.spec.name.clone(),
                spec: service.spec.task.clone(),
                ..Task::new(TaskId::from_bits(self.id()), service.id, Slot::Replica(slot as u64))
            })
            .collect();
        let ids = tasks.iter().map(|task| task.id).collect();
        self.write(tasks.into_iter().map(|task| Change::Create(Object::Task(Box::new(task)))).collect());
        ids
    }

    fn address(&self, task: TaskId) -> IpAddr {
        self.state.tasks().get(&task).expect("a task").attachments.first().expect("an address").address.ip()
    }
}

/// By one pass each. Looking through what is held for each address would take minutes.
#[test]
fn wide_networks_hold_ten_thousand_endpoints() {
    for subnet in ["10.1.0.0/16", "11.0.0.0/8"] {
        let mut world = World::new("10.0.0.0/8", 24);
        world.add_network("wide", &[subnet]);
        world.add_service("api", &["net=wide", "dnsrr"]);

        let tasks = world.add_tasks("api", N_ENDPOINTS);
        let given: BTreeSet<IpAddr> = tasks.iter().map(|task| world.address(*task)).collect();
        // A leader that comes now reads them back, and goes on behind them.
        world.change_leader();
        let later = world.add_tasks("api", N_ENDPOINTS);
        let all: BTreeSet<IpAddr> = later.iter().map(|task| world.address(*task)).chain(given).collect();

        assert_eq!(all.len(), 2 * N_ENDPOINTS);
        let subnet: IpNetwork = subnet.parse().unwrap();
        assert!(all.iter().all(|address| subnet.contains(*address)));
    }
}

/// Through the whole machine: no address leaks, and each rests as long as there is another.
#[test]
fn a_hundred_thousand_tasks_come_and_go() {
    let mut world = World::new("10.0.0.0/8", 24);
    world.add_network("app", &["ipv6"]);
    world.add_service("api", &["net=app", "dnsrr"]);
    let mut before: BTreeSet<IpAddr> = BTreeSet::new();
    for _ in 0..N_CYCLES / PER_WRITE {
        let tasks = world.add_tasks("api", PER_WRITE);
        let given: BTreeSet<IpAddr> = tasks.iter().map(|task| world.address(*task)).collect();
        assert_eq!(given.len(), PER_WRITE);
        // 253 addresses: those of the last hundred tasks aren't needed.
        assert!(given.is_disjoint(&before), "given again at once");
        before = given;
        world.write(tasks.into_iter().map(|id| Change::Delete(ObjectRef::Task(id))).collect());
    }
    check_nothing_leaked(&world);
    let full = world.add_tasks("api", 253);
    assert_eq!(full.iter().map(|task| world.address(*task)).collect::<BTreeSet<_>>().len(), 253);
}
