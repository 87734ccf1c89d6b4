//! The sample blueprint, installed through the REST service: proof that everything works together.

use std::time::Duration;

use anyhow::{Context, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::progress::Progress;
use super::rest::Rest;

const BLUEPRINT: &str = "sample";
const DEPLOYMENT: &str = "sample";
/// How long each of upload, creation and install may take.
const STEP_LIMIT: Duration = Duration::from_secs(180);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The sample, as it lies in the source tree.
const FILES: [(&str, &str); 8] = [
    ("blueprint.yaml", include_str!("sample/blueprint.yaml")),
    ("scripts/application_configure.sh", include_str!("sample/scripts/application_configure.sh")),
    ("scripts/application_start.py", include_str!("sample/scripts/application_start.py")),
    ("scripts/database_create.py", include_str!("sample/scripts/database_create.py")),
    ("scripts/database_start.py", include_str!("sample/scripts/database_start.py")),
    ("scripts/forget.sh", include_str!("sample/scripts/forget.sh")),
    ("scripts/machine_create.sh", include_str!("sample/scripts/machine_create.sh")),
    ("scripts/use_database.sh", include_str!("sample/scripts/use_database.sh")),
];

/// What the install left.
pub struct Proof {
    pub deployment: String,
    pub outputs: Value,
    pub operations: u64,
    /// `None` when it was installed by an earlier start.
    pub installed_in: Option<Duration>,
}

/// Uploads, creates and installs what is not there yet.
pub async fn install(rest: &Rest, progress: &mut Progress) -> anyhow::Result<Proof> {
    let blueprint_path = format!("/blueprints/{BLUEPRINT}");
    let deployment_path = format!("/deployments/{DEPLOYMENT}");
    if rest.find(&blueprint_path).await?.is_none() {
        progress.begin("upload the sample blueprint");
        rest.upload(BLUEPRINT, archive()?).await?;
    }
    until(rest, &blueprint_path, |blueprint| match blueprint["state"].as_str() {
        Some("uploaded") => Ok(true),
        Some(state) if state == "invalid" || state.starts_with("failed") => {
            bail!("the sample blueprint is {state}: {}", blueprint["error"])
        }
        _ => Ok(false),
    })
    .await?;
    if rest.find(&deployment_path).await?.is_none() {
        progress.begin("create the sample deployment");
        let body = json!({ "blueprint_id": BLUEPRINT, "visibility": "tenant", "inputs": { "greeting": "hello from Quorate" } });
        rest.send(Method::PUT, &deployment_path, &body).await?;
    }
    let began = Instant::now();
    let deployment = rest.get(&deployment_path).await?;
    let before = if deployment["installation_status"] == "active" {
        None
    } else {
        progress.begin("install the sample");
        Some(run_install(rest, &deployment, progress).await?)
    };
    progress.done();
    let outputs = rest.get(&format!("/deployments/{DEPLOYMENT}/outputs")).await?;
    Ok(Proof {
        deployment: DEPLOYMENT.into(),
        outputs: outputs["outputs"].clone(),
        operations: before.unwrap_or(0),
        installed_in: before.map(|_| began.elapsed()),
    })
}

/// Runs `install`, or goes on watching one that an earlier start left running. Returns how many operations it had.
async fn run_install(rest: &Rest, deployment: &Value, progress: &Progress) -> anyhow::Result<u64> {
    let unfinished = rest
        .get(&format!("/executions?deployment_id={DEPLOYMENT}&workflow_id=install&status=pending&status=started"))
        .await?;
    let execution = match unfinished["items"].get(0) {
        Some(execution) => execution.clone(),
        None => {
            let body = json!({ "deployment_id": deployment["id"], "workflow_id": "install" });
            rest.send(Method::POST, "/executions", &body).await?
        }
    };
    let id = execution["id"].as_str().context("the execution has no id")?;
    let path = format!("/executions/{id}");
    let done = until(rest, &path, |execution| {
        let number = |key: &str| execution[key].as_u64().unwrap_or(0);
        progress.say(&format!("{} of {} operations", number("finished_operations"), number("total_operations")));
        match execution["status"].as_str() {
            Some("terminated") => Ok(true),
            Some(status @ ("failed" | "cancelled")) => {
                bail!("the install {status}: {}. See `cfy events list {id}`", execution["error"])
            }
            _ => Ok(false),
        }
    })
    .await?;
    Ok(done["total_operations"].as_u64().unwrap_or(0))
}

async fn until(
    rest: &Rest,
    path: &str,
    mut is_done: impl FnMut(&Value) -> anyhow::Result<bool>,
) -> anyhow::Result<Value> {
    let limit = Instant::now() + STEP_LIMIT;
    loop {
        let object = rest.get(path).await?;
        if is_done(&object)? {
            return Ok(object);
        }
        if Instant::now() >= limit {
            bail!("{path} is not done after {} s: {object}", STEP_LIMIT.as_secs());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The sample as a client would pack it: one folder at the top.
fn archive() -> anyhow::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    for (path, text) in FILES {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(if path.starts_with("scripts/") { 0o755 } else { 0o644 });
        archive.append_data(&mut header, format!("sample/{path}"), text.as_bytes())?;
    }
    Ok(archive.into_inner()?.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_holds_every_file_of_the_sample() {
        let packed = archive().unwrap();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(packed.as_slice()));
        let mut packed: Vec<String> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
        let root = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/demo/sample"));
        let mut there = Vec::new();
        for dir in [root.to_owned(), root.join("scripts")] {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    there.push(format!("sample/{}", path.strip_prefix(root).unwrap().display()));
                }
            }
        }
        packed.sort();
        there.sort();
        assert_eq!(packed, there);
    }
}
