//! Admission of a node: the token's form and the two messages. Both sides use these types.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use quorate_types::NodeId;
use serde::{Deserialize, Serialize};

/// A one-time token: `<id>.<secret>.<SHA-256 of the authority's certificate>`.
///
/// The last part lets the joining node check whom it talks to before it sends anything. Its `Debug` form hides the
/// secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Names the token in the cluster's state.
    pub id: String,
    /// Proves it; the cluster keeps only its hash.
    pub secret: String,
    /// Which authority signed the member's certificate, hex.
    pub authority_sha256: String,
}

/// A text is not a token.
#[derive(Debug, thiserror::Error)]
#[error("this is not a join token; make one on a member with `quorate cluster token`")]
pub struct ParseTokenError;

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Token {
    /// The text that the operator carries over.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}.{}.{}", self.id, self.secret, self.authority_sha256)
    }
}

impl FromStr for Token {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('.');
        let (Some(id), Some(secret), Some(authority), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(ParseTokenError);
        };
        let hex = authority.len() == 64 && authority.bytes().all(|b| b.is_ascii_hexdigit());
        let word =
            |part: &str| !part.is_empty() && part.len() <= 128 && part.bytes().all(|b| b.is_ascii_alphanumeric());
        if !hex || !word(id) || !word(secret) {
            return Err(ParseTokenError);
        }
        Ok(Self { id: id.to_owned(), secret: secret.to_owned(), authority_sha256: authority.to_owned() })
    }
}

/// What a joining node sends to `POST /v1/quorate/join` on 8500.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    pub token_id: String,
    pub secret: String,
    pub name: String,
    pub address: IpAddr,
    pub request_pem: String,
    pub public_key_sha256: String,
}

/// What it gets: everything that makes it a member.
#[derive(Serialize, Deserialize)]
pub struct JoinReply {
    pub node: NodeId,
    pub cluster_id: String,
    pub certificate_pem: String,
    pub authority_pem: String,
    pub authority_key_pem: String,
    pub gossip_key: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_round_trip_and_hide_their_secret() {
        let token = Token { id: "abc".into(), secret: "s3cret".into(), authority_sha256: "0".repeat(64) };
        assert_eq!(token.text().parse::<Token>().unwrap(), token);
        assert!(!format!("{token:?}").contains("s3cret"));
        for bad in ["", "a.b", "a.b.c", "a..0", &format!("a.b.{}.d", "0".repeat(64))] {
            assert!(bad.parse::<Token>().is_err(), "{bad}");
        }
    }
}
