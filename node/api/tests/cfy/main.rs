//! The unmodified command line of the original against the REST API over TLS.
//!
//! Each test needs `#[cfg_attr(not(has_cfy), ignore = "QUORATE_VENV is not set: `make test` sets it")]`.

mod basic;
mod deployments;
mod support;
