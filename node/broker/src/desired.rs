//! What the broker shall hold.

use std::fmt;

/// Everything but the administrator and the virtual host `/`, which are always there. What it does not name goes.
#[derive(Debug, Clone, Default)]
pub struct Desired {
    /// The virtual hosts.
    pub vhosts: Vec<VhostDef>,
    /// The users. The administrator is none of them and has every permission on every virtual host.
    pub users: Vec<UserDef>,
}

/// A virtual host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VhostDef {
    /// Its name.
    pub name: String,
}

/// A user. Its `Debug` form shows no password.
#[derive(Clone, PartialEq, Eq)]
pub struct UserDef {
    /// Its name, not the administrator's.
    pub name: String,
    /// Its password.
    pub password: String,
    /// RabbitMQ's tags, such as `monitoring`; none for tenants and agents.
    pub tags: Vec<String>,
    /// At most one for each virtual host.
    pub permissions: Vec<Permission>,
}

impl fmt::Debug for UserDef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserDef")
            .field("name", &self.name)
            .field("tags", &self.tags)
            .field("permissions", &self.permissions)
            .finish_non_exhaustive()
    }
}

/// What a user may do in one virtual host: three regular expressions over names of exchanges and queues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permission {
    /// The virtual host.
    pub vhost: String,
    /// What may be declared and deleted.
    pub configure: String,
    /// What may be published to.
    pub write: String,
    /// What may be consumed from.
    pub read: String,
}

impl Permission {
    /// Everything in this virtual host.
    #[must_use]
    pub fn everything(vhost: impl Into<String>) -> Self {
        Self { vhost: vhost.into(), configure: ".*".into(), write: ".*".into(), read: ".*".into() }
    }
}
