//! Numbers that must not be mixed up.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A text is not a node id, an epoch or a term.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not a {what}")]
pub struct ParseIdError {
    what: &'static str,
    text: String,
}

/// A member of the cluster, `1..`; never used again after its member was removed. Shown as `n1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

impl FromStr for NodeId {
    type Err = ParseIdError;

    /// Reads `n3`, or `3` as an operator may type it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix('n').unwrap_or(text);
        match digits.parse::<u64>() {
            Ok(number) if number > 0 && digits.bytes().all(|b| b.is_ascii_digit()) => Ok(Self(number)),
            _ => Err(ParseIdError { what: "node id (n1, n2 …)", text: text.to_owned() }),
        }
    }
}

impl Serialize for NodeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { serializer.serialize_u64(self.0) }
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
        } else {
            u64::deserialize(deserializer).map(Self)
        }
    }
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The one after this.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self).map_err(|_| ParseIdError { what: $what, text: text.to_owned() })
            }
        }
    };
}

counter!(
    /// Grows by one with every change of the active node; the fencing token on every effect. 0: none yet.
    Epoch,
    "epoch"
);
counter!(
    /// Raft's term.
    Term,
    "term"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ids_are_text_in_json_and_survive_the_round_trip() {
        let text = serde_json::to_string(&NodeId(3)).unwrap();
        assert_eq!(text, "\"n3\"");
        assert_eq!(serde_json::from_str::<NodeId>(&text).unwrap(), NodeId(3));
        assert_eq!("7".parse::<NodeId>().unwrap(), NodeId(7));
        for bad in ["", "n", "n0", "n-1", "n+1", "m1", "1n"] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad} must not be a node id");
        }
    }

    #[test]
    fn an_epoch_is_a_plain_number() {
        assert_eq!(serde_json::to_string(&Epoch(4).next()).unwrap(), "5");
        assert_eq!("5".parse::<Epoch>().unwrap(), Epoch(5));
    }
}
