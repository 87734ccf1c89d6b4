//! The roles that PostgreSQL has from us. Peers are known by the operating system's user of the local socket: the gate
//! has checked their certificate before anything reaches it.

use quorate_types::NodeId;

/// The group of all replication roles; `pg_hba.conf` names it.
pub const REPLICATION_GROUP: &str = "quorate_replication";
/// What `pg_rewind` connects as: four functions and nothing else.
pub const REWIND_ROLE: &str = "quorate_rewind";
/// What the manager itself works as: owner of its database, no superuser.
pub const MANAGER_ROLE: &str = "quorate";
/// The manager's database.
pub const DATABASE: &str = "quorate";

/// One per node, so that a standby cannot pass for another in the synchronous set.
#[must_use]
pub fn replication_role(node: NodeId) -> String {
    format!("repl_{node}")
}

/// Whether a role belongs to Quorate: sessions from outside may not use it.
#[must_use]
pub fn is_internal(user: &str) -> bool {
    user == "postgres" || user == MANAGER_ROLE || user.starts_with("quorate_") || user.starts_with("repl_")
}

/// Everything that must be there before a primary serves; each statement may be repeated.
pub(crate) fn bootstrap(members: &[NodeId]) -> Vec<String> {
    let role = |name: &str, options: &str| {
        format!(
            "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}') THEN \
             CREATE ROLE {name} {options}; END IF; END $$"
        )
    };
    let mut statements = vec![
        role(REPLICATION_GROUP, "NOLOGIN"),
        role(REWIND_ROLE, "LOGIN"),
        role(MANAGER_ROLE, "LOGIN"),
        format!("GRANT EXECUTE ON FUNCTION pg_catalog.pg_ls_dir(text, boolean, boolean) TO {REWIND_ROLE}"),
        format!("GRANT EXECUTE ON FUNCTION pg_catalog.pg_stat_file(text, boolean) TO {REWIND_ROLE}"),
        format!("GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_binary_file(text) TO {REWIND_ROLE}"),
        format!(
            "GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean) TO {REWIND_ROLE}"
        ),
    ];
    for node in members {
        let name = replication_role(*node);
        statements.push(role(&name, &format!("LOGIN REPLICATION IN ROLE {REPLICATION_GROUP}")));
    }
    statements
}
