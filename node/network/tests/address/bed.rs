//! Hosts: network namespaces, each with `eth0` on a bridge in a namespace of its own. Gone when dropped.

use std::fs::File;
use std::future::Future;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use tokio::net::UdpSocket;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(10);

pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the program is installed (.ci/packages)");
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {problem}", arguments.join(" "));
    String::from_utf8(output.stdout).expect("text")
}

/// The bridge and its hosts.
pub struct Bed {
    bridge: String,
    hosts: Vec<Host>,
}

/// One host: a namespace, and a thread in it that runs what it is given.
pub struct Host {
    namespace: String,
    mac: String,
    runtime: Handle,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Bed {
    /// Hosts `1..=count` with the addresses that `address` gives. `None`, and a message, when not root.
    pub fn new(name: &str, count: usize, address: fn(usize) -> String) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("not root: tests with network namespaces are left out");
            return None;
        }
        let bridge = format!("qf-{}-{name}-s", std::process::id());
        run("ip", &["netns", "add", &bridge]);
        let mut bed = Self { bridge, hosts: Vec::new() };
        // No snooping: it needs a querier, which a bed of three hosts does not have.
        run("ip", &["-n", &bed.bridge, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0"]);
        run("ip", &["-n", &bed.bridge, "link", "set", "br0", "up"]);
        for number in 1..=count {
            let namespace = format!("qf-{}-{name}-{number}", std::process::id());
            bed.hosts.push(Host::start(namespace, &bed.bridge, number, &address(number)));
        }
        Some(bed)
    }

    pub fn hosts<const COUNT: usize>(&self) -> [&Host; COUNT] {
        let hosts: Vec<&Host> = self.hosts.iter().collect();
        hosts.try_into().ok().expect("as many as were made")
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.hosts.clear();
        _ = Command::new("ip").args(["netns", "del", &self.bridge]).status();
    }
}

impl Host {
    fn start(namespace: String, bridge: &str, number: usize, address: &str) -> Self {
        run("ip", &["netns", "add", &namespace]);
        let port = format!("port{number}");
        run("ip", &["-n", &namespace, "link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns", bridge]);
        run("ip", &["-n", bridge, "link", "set", &port, "master", "br0", "up"]);
        run("ip", &["-n", &namespace, "link", "set", "lo", "up"]);
        run("ip", &["-n", &namespace, "link", "set", "eth0", "up"]);
        let nodad: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
        run("ip", &[&["-n", &namespace, "addr", "add", address, "dev", "eth0"], nodad].concat());
        let shown = run("ip", &["-n", &namespace, "-brief", "link", "show", "eth0"]);
        let mac = shown.split_whitespace().nth(2).expect("state and address").to_owned();

        let (started, start) = std::sync::mpsc::channel();
        let stop = CancellationToken::new();
        let (until, within) = (stop.clone(), namespace.clone());
        let thread = std::thread::spawn(move || {
            let file = File::open(format!("/run/netns/{within}")).unwrap();
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            started.send(runtime.handle().clone()).unwrap();
            runtime.block_on(until.cancelled());
        });
        let runtime = start.recv().expect("the host's thread starts");
        Self { namespace, mac, runtime, stop, thread: Some(thread) }
    }

    /// Runs something on this host.
    pub async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        self.runtime.spawn(work).await.expect("the work does not panic")
    }

    pub fn mac(&self) -> &str {
        &self.mac
    }

    pub fn ip(&self, arguments: &[&str]) -> String {
        run("ip", &[&["-n", &self.namespace], arguments].concat())
    }

    /// All addresses of `eth0`.
    pub fn addresses(&self) -> String {
        self.ip(&["-brief", "addr", "show", "eth0"])
    }

    /// Whom this host takes for the holder of `address`.
    pub fn neighbour(&self, address: &str) -> Option<String> {
        let shown = self.ip(&["neigh", "show", address, "dev", "eth0"]);
        let mut words = shown.split_whitespace().skip_while(|word| *word != "lladdr");
        words.nth(1).map(str::to_owned)
    }

    /// Sends something to `address`.
    pub async fn touch(&self, address: &str) {
        let address: std::net::IpAddr = address.parse().unwrap();
        self.run(async move {
            let any: std::net::IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
            let socket = UdpSocket::bind((any, 0)).await.unwrap();
            socket.send_to(b"hello", (address, 9)).await.unwrap();
        })
        .await;
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
        _ = Command::new("ip").args(["netns", "del", &self.namespace]).status();
    }
}
