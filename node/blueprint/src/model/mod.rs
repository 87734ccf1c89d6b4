//! What the sections of a blueprint mean: types, schemas, values, operations.

pub(crate) mod constraints;
mod fit;
pub(crate) mod interfaces;
pub(crate) mod plugins;
pub(crate) mod schema;
pub(crate) mod types;

pub(crate) use fit::{Misfit, default_of, fit, fits_primitive, property_value};
