//! `quorate cluster init`: the authority, the first identity and the first password. Nothing starts here.

use std::io::{Read, stdin};
use std::path::Path;

use anyhow::{Context, bail};
use clap::Args;
use quorate_config::Config;
use quorate_types::NodeId;
use rand::Rng;
use rand::distr::Alphanumeric;

use super::ConfigArg;
use crate::pki::{Authority, Identity, KeyFile, Names, signing_request, write_file};

#[derive(Args)]
pub struct InitArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// Read the password of the user `admin` from standard input instead of making one
    #[arg(long)]
    password_stdin: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Characters of a generated password: about 119 bits.
const PASSWORD_CHARACTERS: usize = 20;
/// The range that the REST service accepts.
const PASSWORD_RANGE: std::ops::RangeInclusive<usize> = 5..=256;

/// Where the first password waits for the first start, which stores its hash and removes the file.
pub fn first_password_path(data_dir: &Path) -> std::path::PathBuf {
    data_dir.join("state").join("first-password")
}

pub fn main(args: &InitArgs) -> anyhow::Result<()> {
    let config = Config::load(&args.config.config)?;
    let password = if args.password_stdin {
        let mut text = String::new();
        stdin().take(1024).read_to_string(&mut text).context("read the password from standard input")?;
        let password = text.trim_end_matches(['\r', '\n']).to_owned();
        if !PASSWORD_RANGE.contains(&password.chars().count()) {
            bail!("the password must have {} to {} characters", PASSWORD_RANGE.start(), PASSWORD_RANGE.end());
        }
        Some(password)
    } else {
        None
    };
    let made = init(&config, password)?;
    let ca = KeyFile::Authority.path(&config.data_dir);
    if args.json {
        let body = serde_json::json!({
            "cluster_id": made.cluster_id, "node": NodeId(1), "user": "admin",
            "password": made.password, "ca": ca,
        });
        println!("{body}");
    } else {
        println!("cluster    {}", made.cluster_id);
        println!("node       n1 ({})", config.name);
        println!("CA file    {}", ca.display());
        println!("user       admin");
        println!("password   {}   (shown once: keep it)", made.password);
        println!();
        println!("Next: start this node with `quorate run`, then make a token for each further node with");
        println!("`quorate cluster token` and join them with `quorate cluster join`.");
    }
    Ok(())
}

/// What `init` made.
pub struct Made {
    pub cluster_id: String,
    pub password: String,
}

/// Makes the authority and the identity of the first node.
pub fn init(config: &Config, password: Option<String>) -> anyhow::Result<Made> {
    let identity_file = KeyFile::Identity.path(&config.data_dir);
    if identity_file.exists() {
        bail!(
            "{} exists: this node already belongs to a cluster. Start it with `quorate run`; to begin anew, move {} away first",
            identity_file.display(),
            config.data_dir.display()
        );
    }
    let cluster_id = uuid::Uuid::new_v4().to_string();
    let authority = Authority::create(&cluster_id)?;
    let (key, request) = signing_request()?;
    let names = Names {
        id: NodeId(1),
        name: config.name.clone(),
        addresses: std::iter::once(config.address.node).chain(config.address.cluster).collect(),
    };
    let certificate_pem = authority.sign(&request, &names)?;
    let password = password.unwrap_or_else(generated_password);
    write_file(&first_password_path(&config.data_dir), &password, 0o600)?;
    let identity = Identity {
        cluster_id: cluster_id.clone(),
        node: NodeId(1),
        founder: true,
        gossip_key: rand::rng().random(),
        authority,
        certificate_pem,
        key_pem: key.serialize_pem(),
    };
    identity.store(&config.data_dir)?;
    Ok(Made { cluster_id, password })
}

fn generated_password() -> String {
    rand::rng().sample_iter(Alphanumeric).take(PASSWORD_CHARACTERS).map(char::from).collect()
}
