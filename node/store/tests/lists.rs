//! Filters, search, order and paging.

use quorate_store::{ListQuery, Sort, StoreError, tenants, testing};

fn names(listing: &quorate_store::Listing<tenants::Tenant>) -> Vec<&str> {
    listing.items.iter().map(|tenant| tenant.name.as_str()).collect()
}

#[tokio::test]
async fn lists_are_filtered_sorted_and_paged() {
    let store = testing::store().await;
    let mut tx = store.begin().await.unwrap();
    for name in ["b", "a_1", "c", "aX1"] {
        tenants::insert(&mut tx, name, "x").await.unwrap();
    }
    tx.commit().await.unwrap();
    let mut reader = store.read().await.unwrap();

    let all = tenants::list(&mut reader, &ListQuery::default(), None).await.unwrap();
    assert_eq!((names(&all), all.total), (vec!["b", "a_1", "c", "aX1"], 4));

    let sort = vec![Sort { field: "name".into(), descending: true }];
    let query = ListQuery { sort, offset: 1, size: Some(2), ..ListQuery::default() };
    let page = tenants::list(&mut reader, &query, None).await.unwrap();
    assert_eq!((names(&page), page.total), (vec!["b", "a_1"], 4));

    let beyond = tenants::list(&mut reader, &ListQuery { offset: 9, ..ListQuery::default() }, None).await.unwrap();
    assert_eq!((names(&beyond), beyond.total), (vec![], 4));
    let none = tenants::list(&mut reader, &ListQuery { size: Some(0), ..ListQuery::default() }, None).await.unwrap();
    assert_eq!((names(&none), none.total), (vec![], 4));

    let search = ListQuery { search: Some("A_".into()), ..ListQuery::default() };
    assert_eq!(names(&tenants::list(&mut reader, &search, None).await.unwrap()), vec!["a_1"]);

    let filters = vec![("name".to_owned(), vec!["c".to_owned(), "b".to_owned()])];
    let query = ListQuery { filters, ..ListQuery::default() };
    assert_eq!(names(&tenants::list(&mut reader, &query, None).await.unwrap()), vec!["b", "c"]);

    let filters = vec![("rabbitmq_password".to_owned(), vec!["x".to_owned()])];
    let query = ListQuery { filters, ..ListQuery::default() };
    let refused = tenants::list(&mut reader, &query, None).await;
    assert!(matches!(refused, Err(StoreError::UnknownField(field)) if field == "rabbitmq_password"));

    let again = tenants::insert(&mut store.begin().await.unwrap(), "b", "x").await.unwrap_err();
    assert!(again.is_conflict_on(tenants::NAME_TAKEN));
}
