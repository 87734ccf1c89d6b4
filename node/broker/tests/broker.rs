//! Real brokers on loopback addresses.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use quorate_broker::{
    Broker, BrokerError, BrokerSettings, BrokerStatus, Desired, Permission, Reconciled, UserDef, VhostDef,
};
use support::{PASSWORD, READY, settings};

const AS_HELPER: &str = "QUORATE_TEST_BROKER_OWNER";
const ON_A_HOST: &str = "QUORATE_TEST_BROKER_HOST";
const HOST_ADDRESS: &str = "10.31.0.1";

fn pid_of(broker: &Broker) -> u32 {
    match broker.status() {
        BrokerStatus::Running { pid, .. } => pid,
        other => panic!("not running: {other:?}"),
    }
}

fn lives(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn gone_within(pid: u32, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while lives(pid) {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

fn vhost(name: &str) -> VhostDef {
    VhostDef { name: name.into() }
}

fn user(name: &str, password: &str, permissions: Vec<Permission>) -> UserDef {
    UserDef { name: name.into(), password: password.into(), tags: vec!["administrator".into()], permissions }
}

/// Asks the management interface as this user.
async fn get(settings: &BrokerSettings, user: &str, password: &str, path: &str) -> (u16, String) {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    let pem = fs::read(&settings.ca_pem_path).expect("the authority");
    for certificate in <rustls::pki_types::CertificateDer as rustls::pki_types::pem::PemObject>::pem_slice_iter(&pem) {
        roots.add(certificate.expect("a certificate")).expect("a root");
    }
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build().expect("a client");
    let url = format!("https://{}/api/{path}", settings.management_address());
    let response = client.get(url).basic_auth(user, Some(password)).send().await.expect("an answer");
    (response.status().as_u16(), response.text().await.expect("text"))
}

async fn names(settings: &BrokerSettings, path: &str) -> BTreeSet<String> {
    let (status, text) = get(settings, &settings.admin_user, PASSWORD, path).await;
    assert_eq!(status, 200, "{text}");
    let items: Vec<serde_json::Value> = serde_json::from_str(&text).expect("a list");
    items.iter().map(|item| item["name"].as_str().expect("a name").to_owned()).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_brokers_share_a_machine_and_follow_what_is_desired() {
    let one = settings("pair-one", "127.31.0.1");
    let two = settings("pair-two", "127.31.0.2");
    let first = Broker::start(one.clone()).await.expect("start");
    let second = Broker::start(two.clone()).await.expect("start");
    first.ready(READY).await.expect("ready");
    second.ready(READY).await.expect("ready");
    assert_ne!(pid_of(&first), pid_of(&second));
    assert_eq!(first.amqps_address().to_string(), "127.31.0.1:5671");

    // A new broker has the administrator and nobody else.
    assert_eq!(names(&one, "users").await, set(&["quorate"]));
    assert_eq!(get(&one, "guest", "guest", "whoami").await.0, 401);
    let plain: SocketAddr = "127.31.0.1:5672".parse().expect("an address");
    assert!(TcpStream::connect_timeout(&plain, Duration::from_secs(1)).is_err(), "AMQP without TLS");
    hides_the_password(&one, pid_of(&first));

    // Created, and then nothing is left to do.
    let mut desired = Desired {
        vhosts: vec![vhost("rabbitmq_vhost_a"), vhost("odd / näme")],
        users: vec![
            user("alice", "one", vec![Permission::everything("rabbitmq_vhost_a"), Permission::everything("/")]),
            user("bob", "two", vec![Permission::everything("odd / näme")]),
        ],
    };
    let done = first.reconcile(&desired).await.expect("reconcile");
    // The administrator's own permissions come with the virtual hosts it creates.
    assert_eq!(done, Reconciled { created: 7, changed: 0, deleted: 0 });
    assert_eq!(first.reconcile(&desired).await.expect("reconcile"), Reconciled::default());
    assert_eq!(names(&one, "vhosts").await, set(&["/", "rabbitmq_vhost_a", "odd / näme"]));
    assert_eq!(get(&one, "alice", "one", "whoami").await.0, 200);
    assert_eq!(names(&two, "users").await, set(&["quorate"]), "the other broker is another world");

    // A password and a permission change, a user, a permission and a virtual host go.
    desired.vhosts.truncate(1);
    desired.users.truncate(1);
    let narrow = Permission { read: "^mine$".into(), ..Permission::everything("rabbitmq_vhost_a") };
    desired.users[0] = user("alice", "other", vec![narrow]);
    let done = first.reconcile(&desired).await.expect("reconcile");
    assert_eq!((done.created, done.changed), (0, 2));
    assert_eq!(first.reconcile(&desired).await.expect("reconcile"), Reconciled::default());
    assert_eq!(names(&one, "users").await, set(&["quorate", "alice"]));
    assert_eq!(names(&one, "vhosts").await, set(&["/", "rabbitmq_vhost_a"]));
    assert_eq!(get(&one, "alice", "one", "whoami").await.0, 401);
    assert_eq!(get(&one, "alice", "other", "whoami").await.0, 200);
    let (_, permissions) = get(&one, "alice", "other", "users/alice/permissions").await;
    assert!(permissions.contains("^mine$") && !permissions.contains("\"vhost\":\"/\""), "{permissions}");

    // What contradicts itself is refused before anything changes.
    let takeover = Desired { vhosts: vec![], users: vec![user("quorate", "x", vec![])] };
    assert!(matches!(first.reconcile(&takeover).await, Err(BrokerError::Reserved(_))));
    let nowhere = Desired { vhosts: vec![], users: vec![user("eve", "x", vec![Permission::everything("gone")])] };
    assert!(matches!(first.reconcile(&nowhere).await, Err(BrokerError::UnknownVhost { .. })));
    assert_eq!(names(&one, "users").await, set(&["quorate", "alice"]));

    restarts_after_a_kill(&first).await;
    assert_eq!(first.reconcile(&desired).await.expect("reconcile"), Reconciled::default(), "it kept what it had");

    // An orderly end, and the administrator's new password holds at the next start.
    let pid = pid_of(&first);
    first.stop().await.expect("stop");
    first.stop().await.expect("stop twice");
    assert_eq!(first.status(), BrokerStatus::Stopped);
    assert!(!lives(pid));
    assert!(second.ready(READY).await.is_ok(), "the other one goes on");
    let renewed = BrokerSettings { admin_password: "another".into(), ..one };
    let first = Broker::start(renewed.clone()).await.expect("start");
    first.ready(READY).await.expect("ready");
    assert_eq!(get(&renewed, "quorate", PASSWORD, "whoami").await.0, 401);
    assert_eq!(first.reconcile(&desired).await.expect("reconcile"), Reconciled::default());

    // Dropped, it is killed.
    let pid = pid_of(&second);
    drop(second);
    assert!(gone_within(pid, Duration::from_secs(10)));
}

async fn restarts_after_a_kill(broker: &Broker) {
    let before = pid_of(broker);
    kill(Pid::from_raw(before.cast_signed()), Signal::SIGKILL).expect("kill");
    let mut changes = broker.status_changes();
    let again = changes.wait_for(|status| matches!(status, BrokerStatus::Running { pid, .. } if *pid != before));
    let again = tokio::time::timeout(Duration::from_secs(20), again).await.expect("in time").expect("a status").clone();
    assert!(matches!(again, BrokerStatus::Running { restarts: 1, .. }), "{again:?}");
    broker.ready(READY).await.expect("ready again");
}

fn hides_the_password(settings: &BrokerSettings, pid: u32) {
    for name in ["cmdline", "environ"] {
        let bytes = fs::read(format!("/proc/{pid}/{name}")).expect("proc");
        assert!(!String::from_utf8_lossy(&bytes).contains(PASSWORD), "{name}");
    }
    let mut folders = vec![settings.node_dir.clone()];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder").filter_map(Result::ok) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(bytes) = fs::read(&path) {
                assert!(!holds(&bytes, PASSWORD.as_bytes()), "{}", path.display());
                files += 1;
            }
        }
    }
    assert!(files > 10, "looked into {files} files");
    assert_private(&settings.node_dir);
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn assert_private(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(folder).expect("a folder").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test]
async fn a_program_that_is_not_there_is_told_and_tried_again() {
    let settings = BrokerSettings { program: "/nowhere/rabbitmq-server".into(), ..settings("missing", "127.31.0.3") };
    let broker = Broker::start(settings).await.expect("start");
    let mut changes = broker.status_changes();
    let told = changes.wait_for(|status| matches!(status, BrokerStatus::Down { restarts: 1, .. }));
    let told = tokio::time::timeout(Duration::from_secs(10), told).await.expect("in time").expect("a status").clone();
    assert!(matches!(&told, BrokerStatus::Down { why, .. } if why.contains("/nowhere/rabbitmq-server")), "{told:?}");
    let waited = broker.ready(Duration::from_millis(300)).await;
    assert!(matches!(waited, Err(BrokerError::NotReady { .. })), "{waited:?}");
    broker.stop().await.expect("stop");
}

#[tokio::test]
async fn a_directory_that_shell_scripts_cannot_carry_is_refused() {
    let mut settings = settings("odd", "127.31.0.3");
    settings.node_dir = settings.node_dir.join("with space");
    assert!(matches!(Broker::start(settings).await, Err(BrokerError::Path(_))));
}

/// Not a test of its own: [`hosts_of_their_own_use_the_same_addresses`] runs it in network namespaces.
#[tokio::test]
async fn helper_on_a_host() {
    let Some(name) = std::env::var_os(ON_A_HOST) else { return };
    let settings = settings(name.to_str().expect("a name"), HOST_ADDRESS);
    let broker = Broker::start(settings.clone()).await.expect("start");
    broker.ready(READY).await.expect("ready: at 127.0.0.1, with a certificate for the host's address");
    let desired = Desired { vhosts: vec![vhost("v")], users: vec![] };
    broker.reconcile(&desired).await.expect("reconcile");
    assert_eq!(broker.reconcile(&desired).await.expect("reconcile"), Reconciled::default());
    TcpStream::connect(broker.amqps_address()).expect("AMQP");
    let outside = SocketAddr::new(settings.node_address, settings.management_port);
    assert!(TcpStream::connect(outside).is_err(), "management is reachable from other hosts");
}

#[test]
fn hosts_of_their_own_use_the_same_addresses() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root makes network namespaces");
        return;
    }
    let script = format!("ip link set lo up && ip addr add {HOST_ADDRESS}/32 dev lo && exec \"$0\" \"$@\"");
    let hosts = ["host-one", "host-two"].map(|name| {
        Command::new("unshare")
            .args(["--net", "sh", "-c", &script])
            .arg(std::env::current_exe().expect("this program"))
            .args(["--exact", "helper_on_a_host", "--nocapture"])
            .env(ON_A_HOST, name)
            .spawn()
            .expect("start a host")
    });
    for mut host in hosts {
        assert!(host.wait().expect("reap the host").success());
    }
}

/// Not a test of its own: [`the_broker_dies_with_its_owner`] runs it in a process and kills that.
#[tokio::test]
async fn helper_owns_a_broker() {
    if std::env::var_os(AS_HELPER).is_none() {
        return;
    }
    let broker = Broker::start(settings("orphan", "127.31.0.4")).await.expect("start");
    println!("\npid={};", pid_of(&broker));
    std::future::pending::<()>().await;
}

#[test]
fn the_broker_dies_with_its_owner() {
    let mut owner = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "helper_owns_a_broker", "--nocapture"])
        .env(AS_HELPER, "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("start the owner");
    let mut stdout = owner.stdout.take().expect("a pipe");
    let mut said = String::new();
    let pid: u32 = loop {
        let mut byte = [0];
        assert_eq!(stdout.read(&mut byte).expect("read"), 1, "the owner ended: {said}");
        said.push(char::from(byte[0]));
        if let Some((_, rest)) = said.split_once("pid=")
            && let Some((number, _)) = rest.split_once(';')
        {
            break number.parse().expect("a number");
        }
    };
    assert!(lives(pid));
    owner.kill().expect("kill the owner");
    owner.wait().expect("reap the owner");
    assert!(gone_within(pid, Duration::from_secs(10)), "the broker outlived its owner");
}
