//! Who sees which rows of a tenant's resources.

use quorate_store::list::{Field, Source};
use quorate_store::users::NewUser;
use quorate_store::{ListQuery, Scope, Store, tenants, testing, users};

const BLUEPRINTS: Source = Source {
    select: "SELECT b.id",
    from: "FROM blueprints b",
    fields: &[Field::text("id", "b.id")],
    search: "b.id",
    order: "b.key",
};

async fn seen(store: &Store, scope: &Scope) -> Vec<String> {
    let mut reader = store.read().await.unwrap();
    let query = ListQuery::default();
    let rows = BLUEPRINTS.list::<(String,)>(&mut reader, &query, |to| scope.push(to, "b")).await.unwrap();
    rows.items.into_iter().map(|(id,)| id).collect()
}

#[tokio::test]
async fn tenants_and_private_rows_are_kept_apart() {
    let store = testing::store().await;
    let mut tx = store.begin().await.unwrap();
    let blue = tenants::insert(&mut tx, "blue", "x").await.unwrap();
    let red = tenants::insert(&mut tx, "red", "x").await.unwrap();
    let mut keys = Vec::new();
    for username in ["ann", "bob"] {
        let user = NewUser { key: None, username, password_hash: "x", role: "default" };
        keys.push(users::insert(&mut tx, user).await.unwrap());
    }
    for (tenant, name) in [(blue, "blue"), (red, "red")] {
        for visibility in ["private", "tenant", "global"] {
            let sql = "INSERT INTO blueprints (id, tenant_key, created_by, visibility, main_file_name, state) \
                       VALUES ($1, $2, $3, $4, 'x', 'uploaded')";
            let insert = sqlx::query(sql).bind(format!("{name}-{visibility}")).bind(tenant).bind(keys[0]);
            insert.bind(visibility).execute(&mut *tx).await.unwrap();
        }
    }
    tx.commit().await.unwrap();

    let in_blue =
        |user, with_global| Scope { user, tenants: Some(vec![blue]), sees_private_in: Some(vec![]), with_global };
    assert_eq!(seen(&store, &in_blue(keys[0], false)).await, ["blue-private", "blue-tenant", "blue-global"]);
    assert_eq!(seen(&store, &in_blue(keys[1], false)).await, ["blue-tenant", "blue-global"]);
    assert_eq!(seen(&store, &in_blue(keys[1], true)).await, ["blue-tenant", "blue-global", "red-global"]);
    let manager = Scope { sees_private_in: Some(vec![blue]), ..in_blue(keys[1], true) };
    assert_eq!(seen(&store, &manager).await, ["blue-private", "blue-tenant", "blue-global", "red-global"]);
    let nowhere = Scope { tenants: Some(vec![]), ..in_blue(keys[0], false) };
    assert_eq!(seen(&store, &nowhere).await, [""; 0]);
    let administrator = Scope { tenants: None, sees_private_in: None, ..in_blue(keys[1], true) };
    assert_eq!(seen(&store, &administrator).await.len(), 6);
}

#[tokio::test]
async fn a_global_name_is_taken_everywhere() {
    let store = testing::store().await;
    let mut tx = store.begin().await.unwrap();
    let user = NewUser { key: None, username: "ann", password_hash: "x", role: "default" };
    let ann = users::insert(&mut tx, user).await.unwrap();
    let mut conflicts = Vec::new();
    for tenant in ["blue", "red"] {
        let tenant = tenants::insert(&mut tx, tenant, "x").await.unwrap();
        let sql = "INSERT INTO blueprints (id, tenant_key, created_by, visibility, main_file_name, state) \
                   VALUES ('hello', $1, $2, 'global', 'x', 'uploaded')";
        conflicts.push(sqlx::query(sql).bind(tenant).bind(ann).execute(&mut *tx).await.err());
    }
    assert!(conflicts[0].is_none() && conflicts[1].is_some());
}
