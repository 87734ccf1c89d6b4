//! The command that starts the broker.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::files::Account;
use crate::settings::BrokerSettings;

/// Where Erlang would look for its port mapper. There is none: the distribution port is fixed and told on the command
/// line. Nobody listens on port 1, so a look is refused at once.
const NO_MAPPER_PORT: &str = "1";

/// Builds the command. The child is killed when the calling *thread* ends, however it ends.
pub(crate) fn command(settings: &BrokerSettings, account: Account) -> io::Result<Command> {
    let name = settings.erlang_name();
    let port = settings.distribution_port;
    let interface = settings.distribution_address().to_string().replace('.', ",");
    // Truncated at every start: it is small, the real log is RabbitMQ's own and rotates.
    let console = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(settings.log().join("console.log"))?;
    let mut command = Command::new(&settings.program);
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LANG", "C.UTF-8")
        .env("HOME", settings.home())
        // The script then becomes the Erlang machine instead of being its parent: signals reach it and its end is seen.
        .env("RUNNING_UNDER_SYSTEMD", "true")
        .env("RABBITMQ_CONF_ENV_FILE", settings.conf("rabbitmq-env.conf"))
        .env("RABBITMQ_CONFIG_FILE", settings.conf("rabbitmq.conf"))
        .env("RABBITMQ_ADVANCED_CONFIG_FILE", settings.conf("advanced.config"))
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", settings.conf("enabled_plugins"))
        .env("RABBITMQ_MNESIA_BASE", settings.database())
        .env("RABBITMQ_LOG_BASE", settings.log())
        .env("RABBITMQ_NODENAME", &name)
        .env("RABBITMQ_USE_LONGNAME", "true")
        .env("RABBITMQ_DIST_PORT", port.to_string())
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        .env("ERL_EPMD_PORT", NO_MAPPER_PORT)
        .env("ERL_CRASH_DUMP_SECONDS", "0")
        // With a name given here RabbitMQ finds the distribution running and starts no port mapper.
        .env(
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
            format!(
                "-name {name} -start_epmd false -erl_epmd_port {port} -kernel inet_dist_listen_min {port} \
                 -kernel inet_dist_listen_max {port} -kernel inet_dist_use_interface {{{interface}}}"
            ),
        )
        .current_dir(settings.home())
        .stdin(Stdio::null())
        .stdout(console.try_clone()?)
        .stderr(console)
        .process_group(0);
    if let Some((uid, gid)) = account.0 {
        command.uid(uid).gid(gid);
    }
    die_with_parent(&mut command);
    Ok(command)
}

#[allow(unsafe_code)]
fn die_with_parent(command: &mut Command) {
    let parent = nix::unistd::getpid();
    // SAFETY: only async-signal-safe calls (prctl, getppid, _exit) run between fork and exec. This runs after the
    // change of user, which would clear the death signal.
    unsafe {
        command.pre_exec(move || {
            // Killed, not asked: what was confirmed is on disk, and the next life wants the ports.
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the line above.
            if libc::getppid() != parent.as_raw() {
                libc::_exit(1);
            }
            Ok(())
        });
    }
}
