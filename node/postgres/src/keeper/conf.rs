//! The configuration files, all outside the data directory: rewind and base backup would overwrite them.

use quorate_types::SyncSet;

use super::Keeper;
use crate::account::Account;
use crate::error::PostgresError;
use crate::lineage::write_synced;
use crate::roles::{MANAGER_ROLE, REPLICATION_GROUP, REWIND_ROLE, replication_role};

/// A synchronous set that nobody can be in.
const NOBODY: &str = "ANY 1 (nobody)";

/// The part that changes while the server runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dynamic {
    /// Whether the walreceiver may connect to the upstream socket.
    pub follows: bool,
    /// What commits wait for; only a primary's. A standby names somebody who does not exist: the flag that makes
    /// commits wait is then up when it is promoted.
    pub sync: Option<SyncSet>,
}

impl Keeper {
    pub(super) fn write_static_conf(&self) -> Result<(), PostgresError> {
        let conf = |name: &str| self.settings.conf(name).display().to_string();
        let sockets = self.settings.server_sockets();
        let text = format!(
            "# Written at every start; changes are lost.\n\
             listen_addresses = ''\n\
             port = 5432\n\
             unix_socket_directories = '{sockets}'\n\
             hba_file = '{hba}'\n\
             ident_file = '{ident}'\n\
             cluster_name = 'quorate_{node}'\n\
             max_connections = {connections}\n\
             superuser_reserved_connections = 5\n\
             shared_buffers = '64MB'\n\
             password_encryption = 'scram-sha-256'\n\
             wal_level = 'replica'\n\
             hot_standby = on\n\
             wal_log_hints = on\n\
             full_page_writes = on\n\
             fsync = on\n\
             synchronous_commit = on\n\
             max_wal_senders = 16\n\
             max_replication_slots = 16\n\
             wal_keep_size = '256MB'\n\
             max_slot_wal_keep_size = '2GB'\n\
             min_wal_size = '32MB'\n\
             max_wal_size = '512MB'\n\
             wal_receiver_timeout = '5s'\n\
             wal_sender_timeout = '5s'\n\
             wal_receiver_status_interval = '1s'\n\
             # The default of 5 s would be the longest part of a failover.\n\
             wal_retrieve_retry_interval = '10ms'\n\
             recovery_target_timeline = 'latest'\n\
             recovery_init_sync_method = 'syncfs'\n\
             # A crashed backend must not reopen the server behind our back.\n\
             restart_after_crash = off\n\
             max_standby_streaming_delay = '1s'\n\
             hot_standby_feedback = off\n\
             log_destination = 'stderr'\n\
             logging_collector = off\n\
             log_line_prefix = '%m [%p] %q%u@%d '\n\
             log_checkpoints = off\n\
             timezone = 'UTC'\n\
             log_timezone = 'UTC'\n\
             include '{dynamic}'\n",
            sockets = sockets.display(),
            hba = conf("pg_hba.conf"),
            ident = conf("pg_ident.conf"),
            node = self.settings.node,
            connections = self.settings.connections_max,
            dynamic = conf("dynamic.conf"),
        );
        self.write("postgresql.conf", &text)?;
        // Our own roles are vouched for by the operating system and can have no password; all others need one. The
        // replication roles, one per node, cannot be listed in a map: the gate has checked the certificate for them,
        // and nobody else can enter the socket's folder.
        let hba = format!(
            "local all postgres,{MANAGER_ROLE},{REWIND_ROLE} peer map=quorate\n\
             local replication +{REPLICATION_GROUP} trust\n\
             local replication postgres peer map=quorate\n\
             local all +{REPLICATION_GROUP} reject\n\
             local all all scram-sha-256\n"
        );
        self.write("pg_hba.conf", &hba)?;
        let me = Account::own_name();
        let account = &self.settings.user;
        let ident = format!(
            "quorate {me} postgres\nquorate {me} {MANAGER_ROLE}\nquorate {me} {REWIND_ROLE}\n\
             quorate {account} {REWIND_ROLE}\n"
        );
        self.write("pg_ident.conf", &ident)
    }

    pub(super) fn write_dynamic_conf(&self, dynamic: &Dynamic) -> Result<(), PostgresError> {
        let node = self.settings.node;
        let conninfo = if dynamic.follows {
            format!(
                "host={} port=5432 user={} application_name={node} connect_timeout=5",
                self.settings.upstream_sockets().display(),
                replication_role(node),
            )
        } else {
            String::new()
        };
        let slot = if dynamic.follows { node.to_string() } else { String::new() };
        let text = format!(
            "primary_conninfo = '{conninfo}'\nprimary_slot_name = '{slot}'\nsynchronous_standby_names = '{}'\n",
            dynamic.sync.as_ref().map_or_else(|| NOBODY.to_owned(), Self::sync_names)
        );
        self.write("dynamic.conf", &text)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), PostgresError> {
        write_synced(&self.settings.conf(name), text.as_bytes(), self.account)
    }
}
