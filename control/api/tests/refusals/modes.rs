//! Modes and generic resources that can not be.

use super::{Case, invalid, service, unsupported};

pub fn modes_and_resources() -> Vec<Case> {
    vec![
        (service("b", r#","Mode":{"Replicated":{"Replicas":1},"Global":{}}"#), (400, "must specify only one service mode".into())),
        (service("b", r#","Mode":{"Replicated":{"Replicas":18446744073709551615}}"#), invalid("Number of replicas must be non-negative")),
        (service("b", r#","Mode":{"Nightly":{}}"#), unsupported("Spec.Mode.Nightly")),
        (service("b", r#","Mode":{"ReplicatedJob":{},"GlobalJob":{}}"#), (400, "must specify only one service mode".into())),
        (service("b", r#","Mode":{"ReplicatedJob":{"MaxConcurrent":18446744073709551615}}"#), invalid("Maximum concurrent jobs must not be negative")),
        (service("b", r#","Mode":{"ReplicatedJob":{"TotalCompletions":18446744073709551615}}"#), invalid("Total completed jobs must not be negative")),
        (service("b", r#","Mode":{"GlobalJob":{}},"UpdateConfig":{"Parallelism":2}"#), invalid("Jobs may not have an update config")),
        (
            r#"{"Name":"b","TaskTemplate":{"ContainerSpec":{"Image":"a"},"Resources":{"Reservations":{"GenericResources":[{"NamedResourceSpec":{"Kind":"gpu","Value":"x"}}]}}}}"#.into(),
            (400, "invalid argument for resource gpu".into()),
        ),
        (
            r#"{"Name":"b","TaskTemplate":{"ContainerSpec":{"Image":"a"},"Resources":{"Reservations":{"GenericResources":[{"DiscreteResourceSpec":{"Kind":"gpu","Value":-1}}]}}}}"#.into(),
            (400, "invalid argument for resource gpu".into()),
        ),
    ]
}
