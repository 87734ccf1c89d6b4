//! Use cases over a real database.

mod epochs;
mod logins;
