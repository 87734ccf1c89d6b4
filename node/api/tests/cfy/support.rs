//! A TLS server in this process, and `cfy` in one of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

/// Where servers listen.
pub const ADDRESSES: [&str; 3] = ["127.0.33.1", "127.0.33.2", "127.0.33.3"];
/// No command may take longer.
const COMMAND_DEADLINE: Duration = Duration::from_secs(120);

/// The doors of a cluster, all on one port.
pub struct Server {
    pub port: u16,
    /// The certificate that clients must trust.
    pub authority: PathBuf,
    _directory: TempDir,
    accepting: Vec<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.iter().for_each(JoinHandle::abort);
    }
}

impl Server {
    /// One door, at the first address.
    pub async fn start(router: Router) -> Self {
        Self::start_at(router, &ADDRESSES[..1]).await
    }

    /// A door at each of these.
    pub async fn start_at(router: Router, addresses: &[&str]) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        // OpenSSL takes equal names of subject and issuer for a self-signed certificate.
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_key = KeyPair::generate().unwrap();
        let authority = params.self_signed(&authority_key).unwrap();
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::new(params, authority_key);
        let names: Vec<String> = ADDRESSES.map(str::to_owned).to_vec();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        std::fs::write(&path, authority.pem()).unwrap();

        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let config = config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));

        let mut port = 0;
        let mut accepting = Vec::new();
        for address in addresses {
            let listener = TcpListener::bind((*address, port)).await.unwrap();
            port = listener.local_addr().unwrap().port();
            accepting.push(tokio::spawn(accept(listener, acceptor.clone(), router.clone())));
        }
        Self { port, authority: path, _directory: directory, accepting }
    }

    /// Closes the door at the n-th address.
    pub async fn close(&mut self, at: usize) {
        let door = self.accepting.remove(at);
        door.abort();
        // Its listener is closed when it has ended.
        assert!(door.await.unwrap_err().is_cancelled());
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, router: Router) {
    while let Ok((socket, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        let service = router.clone().map_request(|request: Request<Incoming>| request.map(Body::new));
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(socket).await else { return };
            let builder = hyper::server::conn::http1::Builder::new();
            // A client that hangs up is no failure of the test.
            drop(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)).await);
        });
    }
}

/// Somebody at a terminal with a home directory of their own.
pub struct Cfy {
    home: TempDir,
}

impl Cfy {
    pub fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap() }
    }

    /// A directory for files that commands read and write.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// `cfy profiles use` with a password.
    pub async fn log_in(&self, server: &Server, username: &str, password: &str, tenant: &str) -> Output {
        self.use_profile(server, &["-u", username, "-p", password, "-t", tenant]).await
    }

    /// `cfy profiles use` for the first door, with these words as login.
    pub async fn use_profile(&self, server: &Server, login: &[&str]) -> Output {
        let authority = server.authority.to_str().unwrap();
        let port = server.port.to_string();
        let address = ["profiles", "use", ADDRESSES[0], "--rest-port", &port, "--ssl", "-c", authority];
        self.run(&[&address[..], login].concat()).await
    }

    /// Runs one command to its end.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        let venv = std::env::var("QUORATE_VENV").expect("QUORATE_VENV is set");
        let mut command = Command::new(Path::new(&venv).join("bin/cfy"));
        command.args(arguments).current_dir(self.home()).env_clear();
        command.env("PATH", "/usr/bin:/bin").env("HOME", self.home()).env("CFY_WORKDIR", self.home());
        // Wide enough that no table is folded.
        command.env("LC_ALL", "C.UTF-8").env("COLUMNS", "1000").kill_on_drop(true);
        let done = tokio::time::timeout(COMMAND_DEADLINE, command.output()).await;
        let output = done.expect("cfy ends in time").expect("cfy starts");
        Output {
            command: arguments.join(" "),
            is_success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs one command with `--json`, which must succeed.
    pub async fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat()).await.ok();
        serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }
}

/// What a command said.
#[derive(Debug)]
pub struct Output {
    #[allow(dead_code, reason = "shown when an assertion fails")]
    pub command: String,
    pub is_success: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// It must have succeeded.
    pub fn ok(self) -> Self {
        assert!(self.is_success, "{self:#?}");
        self
    }

    /// It must have failed, saying `words`.
    pub fn fails_with(self, words: &str) -> Self {
        assert!(!self.is_success && self.says(words), "`{words}` was expected: {self:#?}");
        self
    }

    pub fn says(&self, words: &str) -> bool {
        self.stdout.contains(words) || self.stderr.contains(words)
    }
}
