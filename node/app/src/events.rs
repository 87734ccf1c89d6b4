//! Events and logs of executions.

use quorate_store::events as rows;
use quorate_store::{ListQuery, Listing, executions};

pub use quorate_store::events::{Event, NewEvent};

use crate::{Actor, App, AppError, Permission};

/// Events and logs that one call may bring.
pub const REPORTED_AT_ONCE_MAX: usize = 10_000;

/// The use cases.
pub struct Events<'a>(pub(crate) &'a App);

impl Events<'_> {
    /// Lists events and logs; `everywhere`: of all tenants the actor may list them in. Unknown executions have none.
    ///
    /// # Errors
    /// `forbidden_error`, `bad_parameters_error` for unknown fields.
    pub async fn list(&self, actor: &Actor, query: &ListQuery, everywhere: bool) -> Result<Listing<Event>, AppError> {
        actor.require(Permission::EventList)?;
        let scope = if everywhere { actor.readable_everywhere(Permission::EventList) } else { actor.readable() };
        Ok(rows::list(&mut *self.0.store().read().await?, query, &scope).await?)
    }

    /// Stores what a worker tells of an execution.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error` for the execution, `bad_parameters_error` for more than
    /// [`REPORTED_AT_ONCE_MAX`].
    pub async fn report(&self, actor: &Actor, execution: &str, told: &[NewEvent]) -> Result<(), AppError> {
        actor.require(Permission::EventCreate)?;
        if told.len() > REPORTED_AT_ONCE_MAX {
            return Err(AppError::bad(format!("more than {REPORTED_AT_ONCE_MAX} events and logs in one call")));
        }
        let mut tx = self.0.store().begin().await?;
        let row = executions::find(&mut tx, &actor.writable(), execution).await?;
        let row = row.ok_or_else(|| AppError::not_found("Execution", execution))?;
        rows::insert(&mut tx, row.key, told).await?;
        Ok(tx.commit().await?)
    }
}
