//! What must be there before anybody can log in.

use quorate_store::users::{self, NewUser};
use quorate_store::{StoreError, tenants};

use crate::{App, AppError, DEFAULT_TENANT, FIRST_ADMIN, SystemRole, names};

/// Characters of a tenant's broker password.
pub(crate) const BROKER_PASSWORD_CHARACTERS: usize = 32;

impl App {
    /// Makes the first administrator and the default tenant unless they are there; may be repeated. A password that
    /// was changed later stays.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn bootstrap(&self, admin_password: &str) -> Result<(), AppError> {
        let mut reader = self.store().read().await?;
        let has_admin = users::get(&mut reader, users::FIRST_ADMIN).await?.is_some();
        let has_tenant = tenants::find(&mut reader, DEFAULT_TENANT).await?.is_some();
        drop(reader);
        if has_admin && has_tenant {
            return Ok(());
        }
        let password_hash = self.0.passwords.hash(admin_password).await?;
        let mut tx = self.store().begin().await?;
        if !has_admin {
            let admin = NewUser {
                key: Some(users::FIRST_ADMIN),
                username: FIRST_ADMIN,
                password_hash: &password_hash,
                role: SystemRole::Admin.as_str(),
            };
            users::insert(&mut tx, admin).await?;
        }
        if !has_tenant {
            tenants::insert(&mut tx, DEFAULT_TENANT, &names::random(BROKER_PASSWORD_CHARACTERS)).await?;
        }
        tx.commit().await.map_err(|error: StoreError| error.into())
    }
}
