//! Keeps this node's broker in step with the database: its virtual hosts and users are derived from the tenants that
//! this node's own PostgreSQL knows, so any broker can serve.

use std::sync::Arc;
use std::time::Duration;

use quorate_broker::Broker;
use quorate_store::{ListQuery, PgPool, tenants};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::local::chain;
use crate::manager::accounts;
use crate::pki::Identity;

/// How often tenants are looked at when nobody says that they changed.
const PERIOD: Duration = Duration::from_secs(2);
/// How long the broker may take to be ready before it is mentioned.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// Runs until the token ends; the broker is then ended too.
pub async fn run(
    broker: Arc<Broker>,
    identity: Arc<Identity>,
    database: PgPool,
    wake: Arc<Notify>,
    stop: CancellationToken,
) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = keep(&broker, &identity, &database, &wake) => {}
    }
    if let Err(error) = broker.stop().await {
        warn!(error = chain(&error), "the broker did not end");
    }
}

async fn keep(broker: &Broker, identity: &Identity, database: &PgPool, wake: &Notify) {
    let mut status = broker.status_changes();
    let mut period = tokio::time::interval(PERIOD);
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // Names and passwords as they were last seen; hashing them would save little.
    let mut done: Option<Vec<(String, String)>> = None;
    let mut is_ready = false;
    loop {
        tokio::select! {
            _ = period.tick() => {}
            () = wake.notified() => {}
            changed = status.changed() => {
                if changed.is_err() {
                    return;
                }
                // Another process: what it holds is not known.
                (done, is_ready) = (None, false);
            }
        }
        if !is_ready {
            if let Err(error) = broker.ready(READY_LIMIT).await {
                warn!(error = chain(&error), "the broker is not ready");
                continue;
            }
            info!("the broker is ready");
            is_ready = true;
        }
        let tenants = match read(database).await {
            Ok(tenants) => tenants,
            // Before the first migration, and while PostgreSQL moves: workers must be able to connect nevertheless.
            Err(error) if done.is_none() => {
                debug!(error = chain(&error), "the tenants cannot be read yet");
                Vec::new()
            }
            Err(error) => {
                debug!(error = chain(&error), "the tenants cannot be read now");
                continue;
            }
        };
        let seen = tenants.iter().map(|tenant| (tenant.name.clone(), tenant.rabbitmq_password.clone())).collect();
        if done.as_ref() == Some(&seen) {
            continue;
        }
        match broker.reconcile(&accounts::desired(identity, &tenants)).await {
            Ok(changes) => {
                debug!(?changes, "the broker's accounts");
                done = Some(seen);
            }
            Err(error) => warn!(error = chain(&error), "the broker's accounts are not as they should be, trying again"),
        }
    }
}

async fn read(database: &PgPool) -> Result<Vec<tenants::Tenant>, quorate_store::StoreError> {
    let mut connection = database.acquire().await?;
    Ok(tenants::list(&mut connection, &ListQuery::default(), None).await?.items)
}
