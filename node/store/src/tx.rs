//! Transactions behind the fence.

use std::ops::{Deref, DerefMut};

use quorate_types::Epoch;
use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, PgPool, Postgres, Transaction};

use crate::StoreError;

/// The database as one process sees it in one epoch. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    pool: PgPool,
    epoch: Epoch,
}

impl Store {
    /// `epoch`: what this process serves; [`open_epoch`] must have succeeded for it.
    #[must_use]
    pub fn new(pool: PgPool, epoch: Epoch) -> Self {
        Self { pool, epoch }
    }

    /// The epoch this process serves.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// A connection for reading; each statement sees what was committed before it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn read(&self) -> Result<Reader, StoreError> {
        Ok(Reader(self.pool.acquire().await?))
    }

    /// A writing transaction.
    ///
    /// # Errors
    /// As [`Tx::begin`].
    pub async fn begin(&self) -> Result<Tx, StoreError> {
        Tx::begin(&self.pool, self.epoch).await
    }
}

/// A connection outside of any transaction. Goes back to the pool when dropped.
pub struct Reader(PoolConnection<Postgres>);

impl Deref for Reader {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.0
    }
}

impl DerefMut for Reader {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.0
    }
}

/// A writing transaction that has passed the fence. Rolled back when dropped.
pub struct Tx(Transaction<'static, Postgres>);

impl Tx {
    /// Begins a transaction, provided that `epoch` is the open one. It stays the open one until the transaction ends:
    /// [`open_epoch`] waits for it.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] when another epoch is open, [`StoreError::Unavailable`].
    pub async fn begin(pool: &PgPool, epoch: Epoch) -> Result<Self, StoreError> {
        let mut transaction = pool.begin().await?;
        sqlx::query("SELECT fence($1)").bind(sql(epoch)).execute(&mut *transaction).await?;
        Ok(Self(transaction))
    }

    /// Commits. Not cancel-safe: a cancelled commit may have happened.
    ///
    /// # Errors
    /// [`StoreError::CommitUnknown`] when the connection ended first; others mean that nothing was written.
    pub async fn commit(self) -> Result<(), StoreError> {
        self.0.commit().await.map_err(StoreError::of_commit)
    }
}

impl Deref for Tx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.0
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.0
    }
}

/// Brings the schema up to date; may be repeated. Call it before [`open_epoch`].
///
/// # Errors
/// [`StoreError::Migrate`], also when the database was migrated by a newer program.
pub async fn migrate(pool: &PgPool) -> Result<(), StoreError> {
    sqlx::migrate!("./migrations").run(pool).await.map_err(StoreError::Migrate)
}

/// Opens `epoch` for writing and thereby ends every earlier one; waits for transactions that run. May be repeated.
///
/// # Errors
/// [`StoreError::Fenced`] when a later epoch is open; [`StoreError::CommitUnknown`]: repeat it.
pub async fn open_epoch(pool: &PgPool, epoch: Epoch) -> Result<(), StoreError> {
    let mut transaction = pool.begin().await?;
    sqlx::query("SELECT open_epoch($1)").bind(sql(epoch)).execute(&mut *transaction).await?;
    transaction.commit().await.map_err(StoreError::of_commit)
}

/// Epochs grow by one with each failover, so they stay far below the limit.
fn sql(epoch: Epoch) -> i64 {
    i64::try_from(epoch.0).expect("an epoch fits 63 bits")
}
