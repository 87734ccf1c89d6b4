//! Sessions on a host itself, for what a cut-off node may and may not do.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::cluster::{Cluster, run};
use crate::rest::{Access, Rest};

/// More commits than any story lasts.
const COMMITS_MAX: usize = 20_000;
/// The table that local sessions write.
const TABLE: &str = "local_commits";

/// A session with a host's own PostgreSQL that commits one row after the other.
pub struct LocalCommits {
    psql: Child,
    reader: JoinHandle<()>,
    acked: Arc<Mutex<Vec<(u64, Instant)>>>,
}

impl LocalCommits {
    /// Makes the table if need be and starts committing; `first` is the first number written.
    ///
    /// # Errors
    /// When the host's PostgreSQL takes no session.
    pub fn start(cluster: &Cluster, host: u8, first: u64) -> Result<Self> {
        let make = format!("CREATE TABLE IF NOT EXISTS {TABLE} (number bigint PRIMARY KEY)");
        run(cluster.local_psql(host)?.args(["-c", &make])).context("make a table for local commits")?;
        let mut psql = cluster
            .local_psql(host)?
            .args(["-v", "ON_ERROR_STOP=1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("start psql")?;
        let mut script = psql.stdin.take().context("psql reads its standard input")?;
        // It ends with psql, which stops reading at its first error.
        std::thread::spawn(move || {
            for number in (first..).take(COMMITS_MAX) {
                let lines =
                    format!("INSERT INTO {TABLE} VALUES ({number});\n\\echo {number}\nSELECT FROM pg_sleep(0.002);\n");
                if script.write_all(lines.as_bytes()).is_err() {
                    return;
                }
            }
        });
        let acked: Arc<Mutex<Vec<(u64, Instant)>>> = Arc::default();
        let output = psql.stdout.take().context("psql writes its standard output")?;
        let seen = acked.clone();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Ok(number) = line.trim().parse() {
                    seen.lock().unwrap_or_else(PoisonError::into_inner).push((number, Instant::now()));
                }
            }
        });
        Ok(Self { psql, reader, acked })
    }

    /// Ends the session and returns what it was told is committed, and when.
    ///
    /// # Errors
    /// When psql cannot be ended.
    pub fn stop(mut self) -> Result<Vec<(u64, Instant)>> {
        // It may have ended with its server.
        let _ = self.psql.kill();
        self.psql.wait().context("wait for psql")?;
        self.reader.join().map_err(|_| anyhow!("the reader of psql panicked"))?;
        Ok(std::mem::take(&mut *self.acked.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// The numbers in the table that local sessions wrote, as one host's PostgreSQL has them.
///
/// # Errors
/// When the host's PostgreSQL takes no session.
pub fn local_numbers(cluster: &Cluster, host: u8) -> Result<Vec<u64>> {
    let text = run(cluster.local_psql(host)?.args(["-c", &format!("SELECT number FROM {TABLE} ORDER BY number")]))?;
    text.lines().map(|line| Ok(line.trim().parse()?)).collect()
}

/// Tries to write through the REST service of one host, from that host itself, until the time is over. Returns what
/// was acknowledged.
///
/// # Errors
/// When the host is off.
pub fn write_on_host(cluster: &Cluster, host: u8, prefix: &str, time: Duration) -> Result<Vec<String>> {
    let access = Access { address: cluster.bed().address(host), ..cluster.access()? };
    let network = cluster.bed().network(host)?;
    let prefix = prefix.to_owned();
    let writer = std::thread::spawn(move || -> Result<Vec<String>> {
        network.enter()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let rest = Rest::new(&access, time)?;
            let (until, mut acked, mut number) = (Instant::now() + time, Vec::new(), 0);
            while Instant::now() < until {
                number += 1;
                let id = format!("{prefix}-{number}");
                let request = rest.request(reqwest::Method::POST, "/tokens");
                if rest.call(request.json(&serde_json::json!({ "description": id }))).await.is_ok() {
                    acked.push(id);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(acked)
        })
    });
    writer.join().map_err(|_| anyhow!("the writer panicked"))?
}
