//! Brokers, managers and the engine's side of the wire, for a worker under test.

pub mod engine;
pub mod manager;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use quorate_broker::{Broker, BrokerSettings};
use quorate_worker::{AmqpAccess, RestTarget, Worker, WorkerError, WorkerSettings};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use engine::Engine;
pub use manager::Manager;

pub const SOON: Duration = Duration::from_secs(20);
pub const USER: &str = "quorate";
pub const PASSWORD: &str = "the-secret-of-the-worker-tests";

/// An authority, and a certificate of it for one address, PEM.
pub struct Certificates {
    pub ca: String,
    pub cert: String,
    pub key: String,
}

pub fn certificates(address: IpAddr) -> Certificates {
    let ca_key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // OpenSSL takes a certificate whose issuer has its own name for a self-signed one.
    params.distinguished_name.push(DnType::CommonName, "authority of the tests");
    let ca = params.self_signed(&ca_key).expect("an authority").pem();
    let issuer = Issuer::new(params, ca_key);
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::IpAddress(address)];
    let cert = params.signed_by(&key, &issuer).expect("a certificate").pem();
    Certificates { ca, cert, key: key.serialize_pem() }
}

/// A real broker and the authority of its certificate.
pub struct TestBroker {
    pub broker: Broker,
    pub ca: String,
}

impl TestBroker {
    pub async fn start(name: &str, address: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("quorate-test-worker-{name}"));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("make a folder");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("open the folder");
        let node_address = address.parse().expect("an address");
        let files = certificates(node_address);
        let write = |name: &str, text: &str| -> PathBuf {
            let path = folder.join(name);
            fs::write(&path, text).expect("write");
            path
        };
        let broker = Broker::start(BrokerSettings {
            program: "/usr/lib/rabbitmq/bin/rabbitmq-server".into(),
            user: Some("rabbitmq".into()),
            node_dir: folder.join("broker"),
            node_address,
            amqps_port: 5671,
            management_port: 15671,
            distribution_port: 25672,
            ca_pem_path: write("ca.pem", &files.ca),
            cert_pem_path: write("cert.pem", &files.cert),
            key_pem_path: write("key.pem", &files.key),
            admin_user: USER.into(),
            admin_password: PASSWORD.into(),
        })
        .await
        .expect("start a broker");
        Self { broker, ca: files.ca }
    }

    pub async fn ready(&self) {
        self.broker.ready(Duration::from_secs(90)).await.expect("a broker that is ready");
    }

    pub fn address(&self) -> SocketAddr {
        self.broker.amqps_address()
    }
}

/// A worker in this process.
pub struct TestWorker {
    pub dir: tempfile::TempDir,
    pub active: watch::Sender<Option<SocketAddr>>,
    stop: CancellationToken,
    running: JoinHandle<Result<(), WorkerError>>,
}

impl TestWorker {
    /// `ca` is the brokers' authorities, `venv` a Python environment.
    pub fn start(name: &str, broker: SocketAddr, ca: &str, manager: &Manager, venv: Option<&Path>) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        if let Some(venv) = venv {
            std::os::unix::fs::symlink(venv, dir.path().join("venv")).expect("link");
        }
        let (active, seen) = watch::channel(Some(broker));
        // The first host answers nothing; cloudify-common takes seconds to see that, so it is spared.
        let dead = venv.is_none().then(|| "127.32.0.99".to_owned());
        let hosts = dead.into_iter().chain([manager.address.ip().to_string()]).collect();
        let settings = WorkerSettings {
            name: name.into(),
            dir: dir.path().to_owned(),
            exe: program(),
            amqp: AmqpAccess {
                active: seen,
                ca_pem: ca.into(),
                user: USER.into(),
                password: PASSWORD.into(),
                vhost: "/".into(),
            },
            rest: RestTarget {
                hosts,
                port: manager.address.port(),
                ca_pem: manager.ca.clone(),
                patience: Duration::from_secs(20),
            },
            operations_max: 4,
        };
        let stop = CancellationToken::new();
        let running = tokio::spawn(Worker::run(settings, stop.clone()));
        Self { dir, active, stop, running }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.running.await.expect("no panic").expect("a worker that started");
    }
}

/// The example program, which scripts find as `ctx`.
pub fn program() -> PathBuf {
    let test = std::env::current_exe().expect("this program");
    let target = test.parent().and_then(Path::parent).expect("the target directory");
    let program = target.join("examples/worker");
    assert!(program.exists(), "{} is built with the tests", program.display());
    program
}

/// Waits for something to become true.
pub async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_true() {
        assert!(Instant::now() < deadline, "in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether a process runs.
pub fn lives(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// The pid a script wrote into a file.
pub fn pid_in(path: &Path) -> Option<i32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
