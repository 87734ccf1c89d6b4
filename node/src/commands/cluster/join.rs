//! `quorate cluster token` and `quorate cluster join`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use quorate_config::Config;
use quorate_types::ports;

use super::ConfigArg;
use crate::admin;
use crate::join::{JoinReply, JoinRequest, Token};
use crate::pki::{Authority, Identity, KeyFile, request_key_sha256, sha256_hex, signing_request, tls};

#[derive(Args)]
pub struct TokenArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// Minutes until the token expires, 1 to 1440
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=1440))]
    minutes: u64,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub fn token(args: &TokenArgs) -> anyhow::Result<()> {
    let config = Config::load(&args.config.config)?;
    let request = admin::NewToken { seconds: args.minutes * 60 };
    let made: admin::MadeToken = super::super::block_on(admin::call(&config, "POST", "/tokens", Some(&request)))?;
    if args.json {
        println!("{}", serde_json::to_string(&made)?);
    } else {
        println!("{}", made.token);
        eprintln!("valid once, for {} minutes; on the new node:", args.minutes);
        eprintln!("  quorate cluster join --address {} --token-stdin", config.address.node);
    }
    Ok(())
}

#[derive(Args)]
pub struct JoinArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// The address of any running member
    #[arg(long, value_name = "IP")]
    address: IpAddr,
    /// Its API port
    #[arg(long, default_value_t = ports::CONSUL)]
    port: u16,
    /// A file that holds the token
    #[arg(long, value_name = "FILE", conflicts_with = "token_stdin")]
    token_file: Option<std::path::PathBuf>,
    /// Read the token from standard input (a token on the command line could be read by other users)
    #[arg(long)]
    token_stdin: bool,
}

/// How long a member may take to answer.
const JOIN_DEADLINE: Duration = Duration::from_secs(30);

pub fn join(args: &JoinArgs) -> anyhow::Result<()> {
    let config = Config::load(&args.config.config)?;
    let text = match &args.token_file {
        Some(file) => std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?,
        None if args.token_stdin => {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).context("read the token from standard input")?;
            line
        }
        None => bail!("give the token with --token-file or --token-stdin"),
    };
    let token: Token = text.trim().parse()?;
    let member = SocketAddr::new(args.address, args.port);
    let identity = super::super::block_on(ask(&config, member, &token))?;
    println!("{} is now {} of cluster {}", config.name, identity.node, identity.cluster_id);
    println!("Next: start it with `quorate run`; it copies the data by itself.");
    Ok(())
}

/// Asks a member to be admitted and stores the identity that it gives.
pub async fn ask(config: &Config, member: SocketAddr, token: &Token) -> anyhow::Result<Identity> {
    let identity_file = KeyFile::Identity.path(&config.data_dir);
    if identity_file.exists() {
        bail!(
            "{} exists: this node already belongs to a cluster. To join anew, move {} away first",
            identity_file.display(),
            config.data_dir.display()
        );
    }
    let (key, request_pem) = signing_request()?;
    let request = JoinRequest {
        token_id: token.id.clone(),
        secret: token.secret.clone(),
        name: config.name.clone(),
        address: config.address.node,
        public_key_sha256: request_key_sha256(&request_pem)?,
        request_pem,
    };
    let client = reqwest::Client::builder()
        .use_preconfigured_tls(tls::PinnedAuthority::client(&token.authority_sha256))
        .timeout(JOIN_DEADLINE)
        .no_proxy()
        .build()?;
    let response = client
        .post(format!("https://{member}/v1/quorate/join"))
        .json(&request)
        .send()
        .await
        .with_context(|| format!("reach a member at {member} (is it running, and is the token of its cluster?)"))?;
    let status = response.status();
    if !status.is_success() {
        let text = response.text().await.unwrap_or_default();
        return Err(anyhow!("{member} refused: {} ({status})", text.trim()));
    }
    let reply: JoinReply = response.json().await.context("read the member's answer")?;
    let authority_der = pem_der(&reply.authority_pem)?;
    if sha256_hex(&authority_der) != token.authority_sha256 {
        bail!("{member} gave another authority than the token names: do not trust it");
    }
    let identity = Identity {
        cluster_id: reply.cluster_id,
        node: reply.node,
        founder: false,
        gossip_key: hex::decode(&reply.gossip_key)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| anyhow!("{member} gave a malformed gossip key"))?,
        authority: Authority::from_pem(reply.authority_pem, reply.authority_key_pem),
        certificate_pem: reply.certificate_pem,
        key_pem: key.serialize_pem(),
    };
    identity.store(&config.data_dir)?;
    Ok(identity)
}

fn pem_der(pem: &str) -> anyhow::Result<Vec<u8>> {
    use rustls_pki_types::pem::PemObject;
    let der = rustls_pki_types::CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| anyhow!("read the authority's certificate: {error}"))?;
    Ok(der.to_vec())
}
