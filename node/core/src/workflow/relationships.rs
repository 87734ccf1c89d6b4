//! Operations of relationships: on the source, on the target, group by group.

use serde_json::Value;

use super::build::{Builder, Draft, Sequence};
use super::context::{Call, Side};

const INTERFACE: &str = "cloudify.interfaces.relationship_lifecycle";

/// Tasks of one relationship operation for an instance, grouped by target node in blueprint order. Empty groups are
/// left out, so an empty answer means "nothing to do".
pub(super) fn groups(b: &Builder<'_, '_>, instance: usize, operation: &str) -> Vec<Vec<Draft>> {
    let full = format!("{INTERFACE}.{operation}");
    let mut groups: Vec<(usize, Vec<Draft>)> = Vec::new();
    let mut group_of: std::collections::HashMap<usize, usize> = std::collections::HashMap::new();
    for relationship in &b.index.instances[instance].relationships {
        let Some(definition) = relationship.definition else {
            continue;
        };
        let node = b.index.instances[relationship.target].node;
        let at = *group_of.entry(node).or_insert_with(|| {
            groups.push((node, Vec::new()));
            groups.len() - 1
        });
        for side in [Side::Source, Side::Target] {
            let (list, runs, other) = match side {
                Side::Source => ("source_operations", instance, relationship.target),
                Side::Target => ("target_operations", relationship.target, instance),
            };
            let definition: Option<&Value> = definition.get(list).and_then(|ops| ops.get(&full));
            let task = definition.and_then(|definition| {
                let related = Some((other, side));
                b.task(&Call { instance: runs, operation: &full, definition, related })
            });
            groups[at].1.extend(task);
        }
    }
    groups.into_iter().map(|(_, tasks)| tasks).filter(|tasks| !tasks.is_empty()).collect()
}

/// Event, sub-graph, event; nothing when no side does anything.
pub(super) fn step(
    b: &mut Builder<'_, '_>,
    sequence: &mut Sequence,
    instance: usize,
    operation: &str,
    groups: Vec<Vec<Draft>>,
    texts: (&str, &str),
) {
    if groups.is_empty() {
        return;
    }
    b.then(sequence, vec![b.event(instance, texts.0)]);
    let mut inner = b.nested(sequence, &format!("{INTERFACE}.{operation}_subgraph"));
    for tasks in groups {
        b.then(&mut inner, tasks);
    }
    b.then(sequence, vec![b.event(instance, texts.1)]);
}
