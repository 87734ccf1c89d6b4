//! `tosca_definitions_version`.

use std::fmt;

/// `cloudify_dsl_1_N`; N from 0 to 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DslVersion(u8);

impl DslVersion {
    const NEWEST: u8 = 5;

    pub const V1_0: Self = Self(0);
    pub const V1_1: Self = Self(1);
    pub const V1_2: Self = Self(2);
    pub const V1_3: Self = Self(3);
    pub const V1_4: Self = Self(4);
    pub const V1_5: Self = Self(5);

    /// Reads `cloudify_dsl_1_N`.
    pub fn parse(text: &str) -> Option<Self> {
        let minor = text.strip_prefix("cloudify_dsl_1_")?;
        (0..=Self::NEWEST).find(|n| n.to_string() == minor).map(Self)
    }

    pub fn minor(self) -> u8 {
        self.0
    }

    /// `1_4`, as in the names of version-dependent files.
    pub fn suffix(self) -> String {
        format!("1_{}", self.0)
    }

    pub(crate) fn known() -> String {
        let all: Vec<String> = (0..=Self::NEWEST).map(|n| format!("'{}'", Self(n))).collect();
        format!("[{}]", all.join(", "))
    }
}

impl fmt::Display for DslVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cloudify_dsl_1_{}", self.0)
    }
}
