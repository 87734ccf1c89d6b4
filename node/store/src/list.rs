//! Lists: filters, search, order and paging that clients choose, over columns that we choose.

use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgConnection, Postgres, QueryBuilder};

use crate::StoreError;

/// How a field is compared with the text a client sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As it is.
    Text,
    /// `true` or `false`, in any letter case.
    Bool,
    /// By its text form: numbers, times.
    Other,
    /// Documents: neither compared nor sorted by.
    Opaque,
}

/// A field that clients may filter and sort by.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// As clients call it.
    pub name: &'static str,
    /// The SQL expression.
    pub sql: &'static str,
    /// How to compare.
    pub kind: Kind,
}

impl Field {
    /// A text.
    #[must_use]
    pub const fn text(name: &'static str, sql: &'static str) -> Self {
        Self { name, sql, kind: Kind::Text }
    }

    /// A flag.
    #[must_use]
    pub const fn bool(name: &'static str, sql: &'static str) -> Self {
        Self { name, sql, kind: Kind::Bool }
    }

    /// A number or a time.
    #[must_use]
    pub const fn other(name: &'static str, sql: &'static str) -> Self {
        Self { name, sql, kind: Kind::Other }
    }
}

/// Where a list comes from.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// `SELECT …`, the columns of the row type.
    pub select: &'static str,
    /// `FROM … JOIN …`, without conditions.
    pub from: &'static str,
    /// What clients may name.
    pub fields: &'static [Field],
    /// The expression that `_search` looks in.
    pub search: &'static str,
    /// The last sort key: unique, so that paging is stable.
    pub order: &'static str,
}

/// One sort key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sort {
    /// As clients call it.
    pub field: String,
    /// Largest first.
    pub descending: bool,
}

/// What a client asked of a list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListQuery {
    /// Fields and the values that are let through; several fields must all fit.
    pub filters: Vec<(String, Vec<String>)>,
    /// Fields that must hold a text between two (each may be open), both ends included.
    pub ranges: Vec<(String, Option<String>, Option<String>)>,
    /// A part of the searched field, in any letter case.
    pub search: Option<String>,
    /// First key first.
    pub sort: Vec<Sort>,
    /// Rows to leave out.
    pub offset: i64,
    /// Rows at most; `None`: all.
    pub size: Option<i64>,
}

impl ListQuery {
    /// The values that a filter lets through, removing it: for fields that are not columns.
    pub fn take(&mut self, field: &str) -> Option<Vec<String>> {
        let at = self.filters.iter().position(|(name, _)| name == field)?;
        Some(self.filters.remove(at).1)
    }
}

/// One page, and how many rows there are in all.
#[derive(Debug, Clone)]
pub struct Listing<T> {
    /// The page.
    pub items: Vec<T>,
    /// Before paging.
    pub total: i64,
}

impl<T> Listing<T> {
    /// The same page of something else.
    pub fn map<U>(self, change: impl FnMut(T) -> U) -> Listing<U> {
        Listing { items: self.items.into_iter().map(change).collect(), total: self.total }
    }
}

impl Source {
    /// Runs a list. `scope` appends the condition that no client can change, usually [`crate::Scope::push`].
    ///
    /// # Errors
    /// [`StoreError::UnknownField`], [`StoreError::Unavailable`]; [`StoreError::Refused`] for a range that the column
    /// cannot read.
    pub async fn list<T>(
        &self,
        connection: &mut PgConnection,
        query: &ListQuery,
        scope: impl Fn(&mut QueryBuilder<'_, Postgres>),
    ) -> Result<Listing<T>, StoreError>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let mut page = QueryBuilder::new(self.select);
        page.push(" ");
        self.conditions(&mut page, query, &scope)?;
        page.push(" ORDER BY ");
        for sort in &query.sort {
            page.push(self.field(&sort.field)?.sql).push(if sort.descending { " DESC, " } else { " ASC, " });
        }
        page.push(self.order);
        if query.offset > 0 {
            page.push(" OFFSET ").push_bind(query.offset);
        }
        if let Some(size) = query.size {
            page.push(" LIMIT ").push_bind(size);
        }
        let items: Vec<T> = page.build_query_as().fetch_all(&mut *connection).await?;

        // A page that is not full is the last one and tells the total by itself.
        let seen = i64::try_from(items.len()).unwrap_or(i64::MAX);
        let is_last = query.size.is_none_or(|size| seen < size) && (seen > 0 || query.offset == 0);
        let total = if is_last {
            query.offset + seen
        } else {
            let mut count = QueryBuilder::new("SELECT count(*) ");
            self.conditions(&mut count, query, &scope)?;
            count.build_query_scalar().fetch_one(connection).await?
        };
        Ok(Listing { items, total })
    }

    fn field(&self, name: &str) -> Result<&Field, StoreError> {
        self.fields
            .iter()
            .find(|field| field.name == name && field.kind != Kind::Opaque)
            .ok_or_else(|| StoreError::UnknownField(name.to_owned()))
    }

    fn conditions(
        &self,
        to: &mut QueryBuilder<'_, Postgres>,
        query: &ListQuery,
        scope: impl Fn(&mut QueryBuilder<'_, Postgres>),
    ) -> Result<(), StoreError> {
        to.push(self.from).push(" WHERE ");
        scope(to);
        for (name, values) in &query.filters {
            let field = self.field(name)?;
            let values = match field.kind {
                Kind::Bool => values.iter().map(|value| value.to_lowercase()).collect(),
                _ => values.clone(),
            };
            let cast = if field.kind == Kind::Text { "" } else { "::text" };
            to.push(" AND (").push(field.sql).push(")").push(cast).push(" = ANY(").push_bind(values).push(")");
        }
        for (name, from, until) in &query.ranges {
            let field = self.field(name)?;
            for (end, sign) in [(from, " >= "), (until, " <= ")] {
                if let Some(end) = end {
                    let cast = if field.kind == Kind::Text { "::text" } else { "::timestamptz" };
                    to.push(" AND (").push(field.sql).push(")").push(sign);
                    to.push("(").push_bind(end.clone()).push("::text)").push(cast);
                }
            }
        }
        if let Some(text) = &query.search {
            let pattern = format!("%{}%", text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_"));
            to.push(" AND ").push(self.search).push(" ILIKE ").push_bind(pattern);
        }
        Ok(())
    }
}
