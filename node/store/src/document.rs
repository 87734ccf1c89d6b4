//! JSON columns.

use std::ops::Deref;

use serde_json::Value;
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueRef, Postgres};
use sqlx::{Decode, Encode, Type};

/// PostgreSQL's `json` and `json[]`.
const JSON: Oid = Oid(114);
const JSON_ARRAY: Oid = Oid(199);

/// A value of a `json` column, key order and number spelling kept. sqlx's own type is `jsonb`, which keeps neither.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document(pub Value);

impl Deref for Document {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.0
    }
}

impl From<Value> for Document {
    fn from(value: Value) -> Self {
        Self(value)
    }
}

impl From<Document> for Value {
    fn from(document: Document) -> Self {
        document.0
    }
}

impl Type<Postgres> for Document {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(JSON)
    }

    fn compatible(ty: &PgTypeInfo) -> bool {
        ty.oid() == Some(JSON)
    }
}

impl PgHasArrayType for Document {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(JSON_ARRAY)
    }
}

impl Encode<'_, Postgres> for Document {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        serde_json::to_writer(&mut **buffer, &self.0)?;
        Ok(IsNull::No)
    }
}

impl Decode<'_, Postgres> for Document {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        Ok(Self(serde_json::from_slice(value.as_bytes()?)?))
    }
}
