//! Which rows of tenant resources somebody sees.

use std::fmt;
use std::str::FromStr;

use sqlx::{Postgres, QueryBuilder};

/// How widely a resource is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Visibility {
    /// Its creator, the tenant's managers, administrators.
    Private,
    /// Its tenant.
    #[default]
    Tenant,
    /// Every tenant.
    Global,
}

impl Visibility {
    /// The spelling in the database and the REST API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Tenant => "tenant",
            Self::Global => "global",
        }
    }
}

impl fmt::Display for Visibility {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Visibility {
    type Err = UnknownVisibility;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "private" => Ok(Self::Private),
            "tenant" => Ok(Self::Tenant),
            "global" => Ok(Self::Global),
            other => Err(UnknownVisibility(other.to_owned())),
        }
    }
}

/// A text that names no visibility.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is none of private, tenant, global")]
pub struct UnknownVisibility(String);

/// The rows of tenant resources that a query may touch. *Invariant*: every query on a tenant resource that runs for a
/// user carries one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// Who asks: sees own private rows.
    pub user: i64,
    /// Rows of these tenants; `None`: of all.
    pub tenants: Option<Vec<i64>>,
    /// Of these tenants also the private rows of others; `None`: of all.
    pub sees_private_in: Option<Vec<i64>>,
    /// Also global rows of all other tenants.
    pub with_global: bool,
}

impl Scope {
    /// Appends a condition, ready to be joined with `AND`, on the table `alias`, which has the columns `tenant_key`,
    /// `created_by` and `visibility`.
    pub fn push(&self, query: &mut QueryBuilder<'_, Postgres>, alias: &'static str) {
        query.push("(");
        if let Some(tenants) = &self.tenants {
            query.push(alias).push(".tenant_key = ANY(").push_bind(tenants.clone()).push(")");
            if self.with_global {
                query.push(" OR ").push(alias).push(".visibility = 'global'");
            }
        } else {
            query.push("true");
        }
        query.push(") AND (").push(alias).push(".visibility <> 'private'");
        if let Some(tenants) = &self.sees_private_in {
            query.push(" OR ").push(alias).push(".created_by = ").push_bind(self.user);
            query.push(" OR ").push(alias).push(".tenant_key = ANY(").push_bind(tenants.clone()).push(")");
        } else {
            query.push(" OR true");
        }
        query.push(")");
    }
}
