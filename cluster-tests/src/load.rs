//! A write load through the cluster address. Every acknowledgement is recorded with its time; afterwards every one of
//! them must be found: rows and files.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use reqwest::Method;
use sha2::{Digest, Sha256};

use crate::cluster::Cluster;
use crate::rest::{Access, Rest};

/// Writers of rows.
const ROW_WRITERS: usize = 4;
/// Between two writes of one writer.
const PAUSE: Duration = Duration::from_millis(4);
/// Between two uploads.
const UPLOAD_PAUSE: Duration = Duration::from_millis(150);
/// A write that takes longer counts as unanswered, and its writer goes on with the next. A client that only waits for
/// an answer cannot know that the host is gone.
const ROW_LIMIT: Duration = Duration::from_secs(2);
/// The same for uploads and for the check afterwards.
const CALL_LIMIT: Duration = Duration::from_secs(20);

/// One acknowledged write.
#[derive(Debug, Clone)]
pub struct Acked {
    /// What was written.
    pub what: Written,
    /// When the acknowledgement came.
    pub at: Instant,
}

/// A row or a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Written {
    /// A token's description.
    Row(String),
    /// A blueprint's id and the SHA-256 of its archive.
    File(String, [u8; 32]),
}

/// Everything that was acknowledged, and why other writes were not.
#[derive(Default)]
pub struct History {
    /// In the order of their acknowledgements, roughly.
    pub acked: Vec<Acked>,
    /// Writes with an error or no answer.
    pub failed: Vec<(Instant, String)>,
    /// When the writers were told to stop.
    pub until: Option<Instant>,
}

/// Writers that run until they are stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    history: Arc<Mutex<History>>,
    writers: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    /// Starts the writers on the client's host. `prefix` keeps the names of several loads apart.
    ///
    /// # Errors
    /// When the CA file is gone.
    pub fn start(cluster: &Cluster, prefix: &str) -> Result<Self> {
        let access = cluster.access()?;
        let stop = Arc::new(AtomicBool::new(false));
        let history: Arc<Mutex<History>> = Arc::default();
        let mut writers = Vec::new();
        for writer in 0..=ROW_WRITERS {
            let (access, stop, history) = (access.clone(), stop.clone(), history.clone());
            let prefix = format!("{prefix}-{writer}");
            let enter = cluster.bed().client_network()?;
            writers.push(std::thread::spawn(move || {
                enter.enter()?;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(write(&access, &prefix, writer == ROW_WRITERS, &stop, &history))
            }));
        }
        Ok(Self { stop, history, writers })
    }

    /// How many writes were acknowledged so far.
    #[must_use]
    pub fn acked(&self) -> usize {
        self.lock().acked.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `more` further writes are acknowledged.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub fn wait_for_more(&self, more: usize, limit: Duration) -> Result<()> {
        let (from, until) = (self.acked(), Instant::now() + limit);
        while self.acked() < from + more {
            if Instant::now() > until {
                let last = self.lock().failed.last().map(|(_, why)| why.clone());
                return Err(anyhow!("{} of {more} writes in {limit:?}; last failure: {last:?}", self.acked() - from));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Stops the writers.
    ///
    /// # Errors
    /// When one of them could not even begin.
    pub fn stop(self) -> Result<History> {
        self.stop.store(true, Ordering::Relaxed);
        self.lock().until = Some(Instant::now());
        for writer in self.writers {
            writer.join().map_err(|_| anyhow!("a writer panicked"))??;
        }
        Ok(std::mem::take(&mut *self.history.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

async fn write(
    access: &Access,
    prefix: &str,
    uploads: bool,
    stop: &AtomicBool,
    history: &Mutex<History>,
) -> Result<()> {
    let rest = Rest::new(access, if uploads { CALL_LIMIT } else { ROW_LIMIT })?;
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let id = format!("{prefix}-{number}");
        let (request, what) = if uploads { upload(&rest, &id)? } else { row(&rest, &id) };
        let result = rest.call(request).await;
        let at = Instant::now();
        history.lock().unwrap_or_else(PoisonError::into_inner).record(&id, what, at, result);
        tokio::time::sleep(if uploads { UPLOAD_PAUSE } else { PAUSE }).await;
    }
    Ok(())
}

fn row(rest: &Rest, id: &str) -> (reqwest::RequestBuilder, Written) {
    let request = rest.request(Method::POST, "/tokens").json(&serde_json::json!({ "description": id }));
    (request, Written::Row(id.to_owned()))
}

fn upload(rest: &Rest, id: &str) -> Result<(reqwest::RequestBuilder, Written)> {
    let archive = small_archive(id)?;
    let digest = Sha256::digest(&archive).into();
    let params = serde_json::json!({
        "visibility": "tenant", "async_upload": true, "application_file_name": "blueprint.yaml",
    });
    let form = reqwest::multipart::Form::new()
        .text("params", params.to_string())
        .part("blueprint_archive", reqwest::multipart::Part::bytes(archive).file_name("b.tar.gz"));
    let request = rest.request(Method::PUT, &format!("/blueprints/{id}")).multipart(form);
    Ok((request, Written::File(id.to_owned(), digest)))
}

/// A blueprint of its own for every upload.
fn small_archive(id: &str) -> Result<Vec<u8>> {
    let text = format!(
        "tosca_definitions_version: cloudify_dsl_1_3\ndescription: {id}\nimports: [cloudify/types/types.yaml]\n\
         node_templates:\n  one:\n    type: cloudify.nodes.Root\n"
    );
    archive(&[("blueprint.yaml", text)])
}

/// A blueprint's files as a client packs them: one folder at the top.
///
/// # Errors
/// None that can happen in memory.
pub fn archive(files: &[(&str, String)]) -> Result<Vec<u8>> {
    let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut archive = tar::Builder::new(encoder);
    for (path, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o755);
        archive.append_data(&mut header, format!("b/{path}"), text.as_bytes())?;
    }
    Ok(archive.into_inner()?.finish()?)
}

impl History {
    fn record(&mut self, id: &str, what: Written, at: Instant, result: Result<serde_json::Value>) {
        match result {
            Ok(_) => self.acked.push(Acked { what, at }),
            Err(error) => self.failed.push((at, format!("{id}: {error:#}"))),
        }
    }

    /// The longest time between two acknowledgements since `from`, while the writers ran.
    #[must_use]
    pub fn longest_pause(&self, from: Instant) -> Duration {
        let to = self.until.unwrap_or(from);
        let mut times: Vec<Instant> =
            self.acked.iter().map(|acked| acked.at).filter(|at| (from..=to).contains(at)).collect();
        times.sort_unstable();
        let ends = std::iter::once(from).chain(times).chain([to]).collect::<Vec<_>>();
        ends.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// Looks for every acknowledged write.
    ///
    /// # Errors
    /// When one is missing, or a file has other bytes: with its name.
    pub fn check(&self, cluster: &Cluster) -> Result<Found> {
        let access = cluster.access()?;
        let enter = cluster.bed().client_network()?;
        let rows: BTreeSet<String> = self
            .acked
            .iter()
            .filter_map(|acked| match &acked.what {
                Written::Row(id) => Some(id.clone()),
                Written::File(..) => None,
            })
            .collect();
        let files: Vec<(String, [u8; 32])> = self
            .acked
            .iter()
            .filter_map(|acked| match &acked.what {
                Written::Row(_) => None,
                Written::File(id, digest) => Some((id.clone(), *digest)),
            })
            .collect();
        let found = Found { rows: rows.len(), files: files.len() };
        std::thread::spawn(move || {
            enter.enter()?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let rest = Rest::new(&access, CALL_LIMIT)?;
                let there: BTreeSet<String> = rest
                    .all("/tokens?_include=description")
                    .await?
                    .iter()
                    .filter_map(|token| token["description"].as_str().map(str::to_owned))
                    .collect();
                let lost: Vec<&String> = rows.difference(&there).collect();
                ensure!(lost.is_empty(), "{} acknowledged rows are lost: {lost:?}", lost.len());
                for (id, digest) in files {
                    let bytes = rest
                        .bytes(&format!("/blueprints/{id}/archive"))
                        .await?
                        .with_context(|| format!("the acknowledged file {id} is lost"))?;
                    ensure!(<[u8; 32]>::from(Sha256::digest(&bytes)) == digest, "{id} has other bytes");
                }
                Ok(())
            })
        })
        .join()
        .map_err(|_| anyhow!("the check panicked"))??;
        Ok(found)
    }
}

/// How much was looked for and found.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    /// Rows.
    pub rows: usize,
    /// Files.
    pub files: usize,
}
