//! Only the process of the open epoch writes.

use std::time::Duration;

use quorate_store::{Store, StoreError, Tx, migrate, open_epoch, tenants, testing};
use quorate_types::Epoch;

#[tokio::test]
async fn an_old_epoch_cannot_write_and_cannot_be_opened_again() {
    let pool = testing::pool().await;
    open_epoch(&pool, Epoch(3)).await.unwrap();
    open_epoch(&pool, Epoch(3)).await.unwrap();
    let old = Store::new(pool.clone(), Epoch(3));
    let mut tx = old.begin().await.unwrap();
    tenants::insert(&mut tx, "a", "x").await.unwrap();
    tx.commit().await.unwrap();

    open_epoch(&pool, Epoch(4)).await.unwrap();
    assert!(matches!(old.begin().await, Err(StoreError::Fenced)));
    assert!(matches!(open_epoch(&pool, Epoch(3)).await, Err(StoreError::Fenced)));
    let mut tx = Tx::begin(&pool, Epoch(4)).await.unwrap();
    assert!(tenants::find(&mut tx, "a").await.unwrap().is_some());
    // A process may not write in an epoch that nobody has opened either.
    assert!(matches!(Tx::begin(&pool, Epoch(5)).await, Err(StoreError::Fenced)));
}

#[tokio::test]
async fn a_new_epoch_waits_for_transactions_of_the_old_one() {
    let pool = testing::pool().await;
    open_epoch(&pool, Epoch(1)).await.unwrap();
    let mut tx = Tx::begin(&pool, Epoch(1)).await.unwrap();
    tenants::insert(&mut tx, "late", "x").await.unwrap();
    let opening = tokio::spawn({
        let pool = pool.clone();
        async move { open_epoch(&pool, Epoch(2)).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!opening.is_finished());
    tx.commit().await.unwrap();
    opening.await.unwrap().unwrap();
    let mut tx = Tx::begin(&pool, Epoch(2)).await.unwrap();
    assert!(tenants::find(&mut tx, "late").await.unwrap().is_some());
}

#[tokio::test]
async fn one_who_waited_behind_a_new_epoch_is_refused() {
    let pool = testing::pool().await;
    open_epoch(&pool, Epoch(1)).await.unwrap();
    let mut opening = pool.begin().await.unwrap();
    sqlx::query("SELECT open_epoch(2)").execute(&mut *opening).await.unwrap();
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { Tx::begin(&pool, Epoch(1)).await.map(drop) }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    opening.commit().await.unwrap();
    assert!(matches!(waiting.await.unwrap(), Err(StoreError::Fenced)));
}

#[tokio::test]
async fn a_commit_whose_connection_is_cut_has_an_unknown_outcome() {
    let store = testing::store().await;
    let mut tx = store.begin().await.unwrap();
    tenants::insert(&mut tx, "cut", "x").await.unwrap();
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *tx).await.unwrap();
    let mut reader = store.read().await.unwrap();
    let sql = "SELECT pg_terminate_backend($1, 5000)";
    sqlx::query(sql).bind(pid).execute(&mut *reader).await.unwrap();
    assert!(matches!(tx.commit().await, Err(StoreError::CommitUnknown(_))));
    assert!(tenants::find(&mut reader, "cut").await.unwrap().is_none());
}

#[tokio::test]
async fn migrations_may_be_repeated() {
    let pool = testing::pool().await;
    migrate(&pool).await.unwrap();
}
