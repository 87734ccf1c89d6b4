//! Making, starting and ending the server.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::Instant;

use super::{Following, Keeper, POLL};
use crate::error::PostgresError;
use crate::lineage::write_synced;
use crate::process::{kill_tree, left_behind, run};
use crate::wire::WireError;

/// How long `initdb` may take.
const INIT_LIMIT: Duration = Duration::from_secs(120);
/// How long recovery may take until connections are accepted.
const START_LIMIT: Duration = Duration::from_secs(300);
/// A log longer than this is put aside at the next start; one old one is kept.
const LOG_BYTES_MAX: u64 = 32 << 20;

impl Keeper {
    pub(super) fn make_directories(&self) -> Result<(), PostgresError> {
        let settings = &self.settings;
        for folder in [
            settings.directory.clone(),
            settings.directory.join("conf"),
            settings.server_sockets(),
            settings.upstream_sockets(),
        ] {
            let attempt = || {
                DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
                std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700))?;
                self.account.own(&folder)
            };
            attempt().map_err(PostgresError::file("make the folder", &folder))?;
        }
        // The account must be able to reach its folders through ours; it cannot list them.
        for folder in [&settings.directory, &settings.socket_dir] {
            open_the_way(folder).map_err(PostgresError::file("open the way to", folder))?;
        }
        Ok(())
    }

    /// A server of an earlier life would hold the directory, and may still have clients.
    pub(super) async fn end_leftover(&self) -> Result<(), PostgresError> {
        let data = self.settings.data();
        if let Some(pid) = left_behind(&data) {
            tracing::warn!(pid = pid.as_raw(), "ending a PostgreSQL that an earlier daemon left behind");
            kill_tree(pid);
            let deadline = Instant::now() + Duration::from_secs(10);
            while left_behind(&data).is_some() && Instant::now() < deadline {
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// Makes a new, empty data directory: the founder's, once.
    ///
    /// # Errors
    /// When `initdb` fails.
    pub async fn init(&self) -> Result<(), PostgresError> {
        let aside = self.settings.directory.join("data.new");
        remove_tree(&aside)?;
        let mut command = Command::new(self.settings.program("initdb"));
        command.arg("-D").arg(&aside).args([
            "--username=postgres",
            "--auth=peer",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--data-checksums",
            // Promotion copies and syncs the last segment: a small one is quicker.
            "--wal-segsize=4",
            "--no-instructions",
        ]);
        self.run("initdb", command, INIT_LIMIT).await?;
        self.swap_in(&aside)
    }

    /// Puts a finished directory into place; what was there is kept aside once.
    pub(super) fn swap_in(&self, fresh: &Path) -> Result<(), PostgresError> {
        let data = self.settings.data();
        let old = self.settings.directory.join("data.old");
        let attempt = || -> std::io::Result<()> {
            if data.exists() {
                if old.exists() {
                    std::fs::remove_dir_all(&old)?;
                }
                std::fs::rename(&data, &old)?;
            }
            std::fs::rename(fresh, &data)?;
            File::open(&self.settings.directory)?.sync_all()
        };
        attempt().map_err(PostgresError::file("put into place", &data))?;
        // Only now: a crash before leaves the marker, and with it another copy.
        self.heal()
    }

    /// Takes the marker of a half-done rewind away.
    pub(super) fn heal(&self) -> Result<(), PostgresError> {
        let marker = self.settings.poisoned();
        match std::fs::remove_file(&marker) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(PostgresError::file("remove", marker)(error))
            }
            _ => Ok(()),
        }
    }

    /// Starts the server as a standby: of `following`, or of nobody. Returns when it answers.
    ///
    /// # Errors
    /// When it ends instead, or recovery takes longer than five minutes.
    pub async fn start(&self, following: Option<&Following>) -> Result<(), PostgresError> {
        if self.is_running() {
            return Ok(());
        }
        let data = self.settings.data();
        self.throne.leave();
        self.write_static_conf()?;
        {
            let mut conf = self.conf.lock().await;
            conf.follows = following.is_some();
            conf.sync = None;
            self.forget_sync();
            self.write_dynamic_conf(&conf)?;
        }
        write_synced(&data.join("standby.signal"), b"", self.account)?;
        // A copy brings the source's file; nothing in it may overrule ours.
        write_synced(&data.join("postgresql.auto.conf"), b"", self.account)?;
        match following {
            Some(following) => self.lead_upstream(following)?,
            None => self.upstream.close(),
        }
        let log = self.open_log()?;
        let program = self.settings.program("postgres");
        let mut command = Command::new(&program);
        command
            .arg("-D")
            .arg(&data)
            .arg("-c")
            .arg(format!("config_file={}", self.settings.conf("postgresql.conf").display()))
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LANG", "C.UTF-8")
            .current_dir(&data)
            .stdout(Stdio::null())
            .stderr(log);
        let process = self
            .spawner
            .spawn(command, self.account)
            .await
            .map_err(|source| PostgresError::Spawn { program, source })?;
        self.set_process(Some(process));
        self.wait_until_it_answers().await?;
        self.drop_slots().await
    }

    async fn wait_until_it_answers(&self) -> Result<(), PostgresError> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            match self.ask("SELECT 1").await {
                Ok(_) => return Ok(()),
                Err(PostgresError::Query(WireError::Password)) => {
                    return Err(PostgresError::Query(WireError::Password));
                }
                Err(_) if !self.is_running() => return Err(PostgresError::Ended(self.log_tail())),
                Err(_) if Instant::now() >= deadline => {
                    return Err(PostgresError::TooSlow { what: "recovery", limit: START_LIMIT });
                }
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// Slots of an earlier reign would hold WAL back for ever: standbys stream from somebody else now.
    async fn drop_slots(&self) -> Result<(), PostgresError> {
        self.ask("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active").await?;
        Ok(())
    }

    /// Kills the server with every session, at once. For a node that must not serve any more.
    pub async fn kill(&self) {
        self.throne.leave();
        self.upstream.close();
        if let Some(process) = self.running() {
            process.kill_all().await;
        }
        self.set_process(None);
    }

    /// Ends the server in order: sessions are cut, WAL is sent to the standbys that stream, then it stops. Whether it
    /// did so within the limit; else it was killed.
    pub async fn stop(&self, limit: Duration) -> bool {
        let Some(process) = self.running() else { return true };
        process.signal(Signal::SIGINT);
        let clean = tokio::time::timeout(limit, process.wait()).await.is_ok();
        if !clean {
            process.kill_all().await;
        }
        self.throne.leave();
        self.upstream.close();
        self.set_process(None);
        clean
    }

    pub(super) async fn run(&self, name: &'static str, command: Command, limit: Duration) -> Result<(), PostgresError> {
        let program = self.settings.program(name);
        let (done, output) =
            run(command, self.account, limit).await.map_err(|source| PostgresError::Spawn { program, source })?;
        if done { Ok(()) } else { Err(PostgresError::Program { program: name, output }) }
    }

    fn log_path(&self) -> PathBuf {
        self.settings.directory.join("postgres.log")
    }

    fn open_log(&self) -> Result<File, PostgresError> {
        let path = self.log_path();
        let attempt = || -> std::io::Result<File> {
            if path.metadata().is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX) {
                std::fs::rename(&path, path.with_extension("log.1"))?;
            }
            OpenOptions::new().create(true).append(true).open(&path)
        };
        attempt().map_err(PostgresError::file("open the log", &path))
    }

    /// The last lines of the server's log, for an error text.
    pub(super) fn log_tail(&self) -> String {
        let text = std::fs::read(self.log_path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[text.len().saturating_sub(4096)..]).into_owned();
        let lines: Vec<&str> = text.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }
}

/// Lets other accounts pass through a folder and its parents, without listing them.
fn open_the_way(folder: &Path) -> std::io::Result<()> {
    let mut at = Some(folder);
    while let Some(path) = at.filter(|path| !path.as_os_str().is_empty()) {
        let metadata = path.metadata()?;
        let mode = metadata.permissions().mode();
        // Folders that are not ours are left alone: the system's own are open anyway.
        if mode & 0o001 == 0 && metadata.uid() == nix::unistd::Uid::effective().as_raw() {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode | 0o011))?;
        }
        at = path.parent();
    }
    Ok(())
}

pub(super) fn remove_tree(path: &Path) -> Result<(), PostgresError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(PostgresError::file("remove the folder", path)(error))
        }
        _ => Ok(()),
    }
}
