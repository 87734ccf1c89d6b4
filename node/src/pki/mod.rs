//! The cluster's own certificate authority, the nodes' certificates, and the TLS settings made from them.
//!
//! Every member keeps the authority's key (file mode 0600), so that any of them can admit another. A certificate's
//! common name is the node id (`n3`); its subject alternative names are the addresses and the name at which clients
//! and nodes reach it.

mod authority;
mod identity;
pub mod tls;

pub use authority::{Authority, Names, public_key_sha256, request_key_sha256, sha256_hex, signing_request};
pub use identity::{Identity, IdentityError, KeyFile, write_file};
