//! What workflows write to node instances.

use crate::{StoreError, Tx};

/// Moves node instances of a deployment to states, in order. `configured` ends a drift, `started` a bad status check;
/// instances that are gone are left out.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn set(tx: &mut Tx, deployment_key: i64, states: &[(String, String)]) -> Result<(), StoreError> {
    // The last state of an instance counts: an UPDATE takes any one of several source rows.
    let mut last: Vec<(&str, &str)> = Vec::with_capacity(states.len());
    for (id, state) in states {
        match last.iter_mut().find(|(known, _)| known == id) {
            Some((_, known)) => *known = state,
            None => last.push((id, state)),
        }
    }
    // What was reset on the way stays reset, whichever state came last.
    let passed = |wanted: &str| {
        let ids = states.iter().filter(|(_, state)| state == wanted).map(|(id, _)| id.clone());
        ids.collect::<Vec<String>>()
    };
    let (ids, names): (Vec<&str>, Vec<&str>) = last.into_iter().unzip();
    let sql = "UPDATE node_instances i SET state = n.state, version = i.version + 1, \
               has_configuration_drift = i.has_configuration_drift AND i.id <> ALL($4), \
               is_status_check_ok = i.is_status_check_ok OR i.id = ANY($5), \
               system_properties = CASE WHEN i.id = ANY($4) OR i.id = ANY($5) THEN \
                   (i.system_properties::jsonb \
                    || CASE WHEN i.id = ANY($4) THEN '{\"configuration_drift\": {\"ok\": true}}'::jsonb \
                       ELSE '{}'::jsonb END \
                    || CASE WHEN i.id = ANY($5) THEN '{\"status\": {\"ok\": true}, \"previous_status\": null}'::jsonb \
                       ELSE '{}'::jsonb END)::json \
                   ELSE i.system_properties END \
               FROM unnest($2::text[], $3::text[]) AS n (id, state) WHERE i.deployment_key = $1 AND i.id = n.id";
    sqlx::query(sql)
        .bind(deployment_key)
        .bind(ids)
        .bind(names)
        .bind(passed("configured"))
        .bind(passed("started"))
        .execute(&mut **tx)
        .await?;
    Ok(())
}
