//! Generic resources, both ways (moby `daemon/cluster/convert/service.go`).

use control_model::generic::{GenericAmount, GenericRequests, GenericResources};

use crate::dto::task::{DiscreteResource, GenericResource, NamedResource};
use crate::error::ApiError;

/// What a service asks for: counts alone.
pub fn requests(given: Vec<GenericResource>) -> Result<GenericRequests, ApiError> {
    let mut asked = GenericRequests::new();
    for resource in given {
        let refused = |kind: &str| Err(ApiError::invalid(format!("invalid argument for resource {kind}")));
        let DiscreteResource { kind, value } =
            match (resource.discrete_resource_spec, resource.named_resource_spec) {
                (Some(discrete), None) => discrete,
                (_, named) => return refused(&named.unwrap_or_default().kind),
            };
        match u64::try_from(value) {
            Ok(count) if !kind.is_empty() && !asked.contains_key(&kind) => asked.insert(kind, count),
            _ => return refused(&kind),
        };
    }
    Ok(asked)
}

/// What a service asks for, as it is shown.
pub fn shown_requests(asked: &GenericRequests) -> Vec<GenericResource> {
    let count = |(kind, count): (&String, &u64)| discrete(kind, *count);
    asked.iter().map(count).collect()
}

/// What a node has, or a task was given.
pub fn shown(resources: &GenericResources) -> Vec<GenericResource> {
    let mut rows = Vec::new();
    for (kind, amount) in resources {
        match amount {
            GenericAmount::Count(count) => rows.push(discrete(kind, *count)),
            GenericAmount::Named(names) => rows.extend(names.iter().map(|name| GenericResource {
                named_resource_spec: Some(NamedResource { kind: kind.clone(), value: name.clone() }),
                discrete_resource_spec: None,
            })),
        }
    }
    rows
}

fn discrete(kind: &str, count: u64) -> GenericResource {
    let value = i64::try_from(count).unwrap_or(i64::MAX);
    let discrete_resource_spec = Some(DiscreteResource { kind: kind.to_owned(), value });
    GenericResource { named_resource_spec: None, discrete_resource_spec }
}
