//! The directory of the broker: configuration written anew at every start, database and logs kept.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;

use nix::unistd::{Uid, User};
use serde_json::json;

use crate::error::BrokerError;
use crate::password;
use crate::settings::BrokerSettings;

/// RabbitMQ stops taking messages above this much memory.
const MEMORY_LIMIT: &str = "512MiB";
/// RabbitMQ stops taking messages when the disk has less than this left.
const DISK_FREE_LIMIT: &str = "256MB";
/// Bytes of one message.
const MESSAGE_LIMIT: u32 = 16 * 1024 * 1024;
/// Of one connection.
const CHANNELS_MAX: u16 = 512;
/// Both sides close a connection that was silent for about twice this, in seconds.
const HEARTBEAT: u16 = 10;
/// One log file, in bytes, and how many old ones are kept.
const LOG_BYTES: u32 = 10 * 1024 * 1024;
const LOGS_KEPT: u8 = 5;

/// User and group of the broker. `None`: those of this process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Account(pub Option<(u32, u32)>);

impl Account {
    pub(crate) fn find(name: Option<&str>) -> Result<Self, BrokerError> {
        let Some(name) = name.filter(|_| Uid::effective().is_root()) else { return Ok(Self(None)) };
        match User::from_name(name) {
            Ok(Some(user)) => Ok(Self(Some((user.uid.as_raw(), user.gid.as_raw())))),
            _ => Err(BrokerError::NoAccount(name.to_owned())),
        }
    }

    fn own(self, path: &Path) -> io::Result<()> {
        self.0.map_or(Ok(()), |(uid, gid)| chown(path, Some(uid), Some(gid)))
    }
}

/// Writes everything the broker reads when it starts.
pub(crate) fn prepare(settings: &BrokerSettings, account: Account) -> Result<(), BrokerError> {
    // RabbitMQ's shell scripts split words, and its configuration knows comments.
    let carried = |c: char| c.is_ascii_alphanumeric() || "/._@+-".contains(c);
    if !settings.node_dir.is_absolute() || !settings.node_dir.to_str().is_some_and(|path| path.chars().all(carried)) {
        return Err(BrokerError::Path(settings.node_dir.clone()));
    }
    for folder in [
        settings.node_dir.clone(),
        settings.node_dir.join("conf"),
        settings.home(),
        settings.log(),
        settings.database(),
    ] {
        make_folder(&folder, account).map_err(BrokerError::file("make the directory", &folder))?;
    }
    for (source, name) in
        [(&settings.ca_pem_path, "ca.pem"), (&settings.cert_pem_path, "cert.pem"), (&settings.key_pem_path, "key.pem")]
    {
        // Copied, because the account of the broker need not be able to read the node's own key.
        let pem = fs::read(source).map_err(BrokerError::file("read", source))?;
        put(&settings.conf(name), &pem, 0o600, account)?;
    }
    put(&settings.conf("rabbitmq.conf"), main_configuration(settings).as_bytes(), 0o600, account)?;
    // Operations are acknowledged when they are done, which may take hours.
    put(&settings.conf("advanced.config"), b"[{rabbit, [{consumer_timeout, undefined}]}].\n", 0o600, account)?;
    put(&settings.conf("enabled_plugins"), b"[rabbitmq_management].\n", 0o600, account)?;
    // Empty: it keeps the machine's /etc/rabbitmq/rabbitmq-env.conf out.
    put(&settings.conf("rabbitmq-env.conf"), b"", 0o600, account)?;
    put(&settings.conf("definitions.json"), definitions(settings).as_bytes(), 0o600, account)?;
    let cookie = settings.home().join(".erlang.cookie");
    if !cookie.exists() {
        put(&cookie, format!("{:032x}", rand::random::<u128>()).as_bytes(), 0o400, account)?;
    }
    Ok(())
}

fn main_configuration(settings: &BrokerSettings) -> String {
    let conf = settings.node_dir.join("conf");
    let conf = conf.display();
    let tls = |prefix: &str| {
        format!(
            "{prefix}.cacertfile = {conf}/ca.pem\n\
             {prefix}.certfile = {conf}/cert.pem\n\
             {prefix}.keyfile = {conf}/key.pem\n\
             {prefix}.versions.1 = tlsv1.3\n\
             {prefix}.versions.2 = tlsv1.2\n"
        )
    };
    let amqps = settings.amqps_address();
    let management = settings.management_address();
    format!(
        "listeners.tcp = none\n\
         listeners.ssl.1 = {amqp_ip}:{amqp_port}\n\
         {amqp_tls}\
         ssl_options.verify = verify_none\n\
         ssl_options.fail_if_no_peer_cert = false\n\
         management.ssl.ip = {management_ip}\n\
         management.ssl.port = {management_port}\n\
         {management_tls}\
         management.rates_mode = none\n\
         load_definitions = {conf}/definitions.json\n\
         loopback_users = none\n\
         heartbeat = {HEARTBEAT}\n\
         channel_max = {CHANNELS_MAX}\n\
         max_message_size = {MESSAGE_LIMIT}\n\
         vm_memory_high_watermark.absolute = {MEMORY_LIMIT}\n\
         disk_free_limit.absolute = {DISK_FREE_LIMIT}\n\
         log.console = false\n\
         log.file = rabbitmq.log\n\
         log.file.level = info\n\
         log.file.rotation.size = {LOG_BYTES}\n\
         log.file.rotation.count = {LOGS_KEPT}\n",
        amqp_ip = amqps.ip(),
        amqp_port = amqps.port(),
        amqp_tls = tls("ssl_options"),
        management_ip = management.ip(),
        management_port = management.port(),
        management_tls = tls("management.ssl"),
    )
}

/// Read at every start. With definitions RabbitMQ makes no default user, and the administrator's password follows the
/// settings.
fn definitions(settings: &BrokerSettings) -> String {
    let admin = &settings.admin_user;
    json!({
        "users": [{
            "name": admin,
            "password_hash": password::hash(&settings.admin_password),
            "hashing_algorithm": password::ALGORITHM,
            "tags": ["administrator"],
        }],
        "vhosts": [{"name": "/"}],
        "permissions": [{"user": admin, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}],
    })
    .to_string()
}

fn make_folder(path: &Path, account: Account) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // The parents are not ours: whoever runs the node may pass.
            if let Some(parent) = path.parent() {
                DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
            }
            DirBuilder::new().mode(0o700).create(path)?;
        }
        other => other?,
    }
    account.own(path)
}

/// Replaces a file as a whole; nobody else can read it at any moment.
fn put(path: &Path, content: &[u8], mode: u32, account: Account) -> Result<(), BrokerError> {
    let fresh = path.with_extension("new");
    let write = || {
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(content)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        account.own(&fresh)?;
        fs::rename(&fresh, path)
    };
    write().map_err(BrokerError::file("write", path))
}
