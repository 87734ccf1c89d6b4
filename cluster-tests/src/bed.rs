//! Hosts made of namespaces. Each has its own network, processes and mounts and a cable to a switch; the switch lives
//! in a namespace of its own, so that nothing appears in the machine's network and no host can leave the bed.
//!
//! A host is switched off as a power cut does it: the cable first, then every process at once, so that no FIN or RST
//! leaves it. The machine's clock is out of reach for everything that runs on a host.

use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The last byte of the client's address.
const CLIENT: u8 = 200;
/// The last byte of the address that moves.
const CLUSTER: u8 = 100;
/// How long a host may take to be there or to be gone.
const HOST_DEADLINE: Duration = Duration::from_secs(10);
/// What root on a host must never have, because the machine has only one of each.
const FORBIDDEN: &str = "--bounding-set=-sys_time,-sys_boot,-sys_module,-sys_rawio,-syslog,-wake_alarm";

/// Hosts 1 to n, a client, and the switch between them. Dropping it ends and removes everything.
pub struct Bed {
    name: String,
    dir: tempfile::TempDir,
    net: [u8; 3],
    hosts: Vec<Host>,
}

struct Host {
    number: u8,
    /// `unshare`, whose one child is process 1 of the host.
    outer: Option<Child>,
    init: Option<Pid>,
}

impl Bed {
    /// Whether this process may make namespaces. Tests that need a bed say so loudly when it may not.
    #[must_use]
    pub fn is_possible() -> bool {
        nix::unistd::geteuid().is_root() && run("ip", &["netns", "list"]).is_ok()
    }

    /// Makes `hosts` hosts and a client. `number` (0 to 99) keeps beds that run side by side apart.
    ///
    /// # Errors
    /// When the machine cannot make namespaces, or such a bed is there already.
    pub fn new(number: u8, hosts: u8) -> Result<Self> {
        ensure!(hosts < CLUSTER && number < 100, "a bed has at most 99 hosts and a number below 100");
        let name = format!("qb{number}x{}", std::process::id());
        let dir = tempfile::Builder::new().prefix("qb").tempdir_in("/tmp").context("make the bed's directory")?;
        let mut bed = Self { name, dir, net: [10, 90, number], hosts: Vec::new() };
        bed.make_switch()?;
        for number in (1..=hosts).chain([CLIENT]) {
            bed.hosts.push(Host { number, outer: None, init: None });
            bed.power_on(number)?;
        }
        Ok(bed)
    }

    /// The address of a host.
    #[must_use]
    pub fn address(&self, host: u8) -> Ipv4Addr {
        let [a, b, c] = self.net;
        Ipv4Addr::new(a, b, c, host)
    }

    /// The address that follows the active node.
    #[must_use]
    pub fn cluster_address(&self) -> Ipv4Addr {
        self.address(CLUSTER)
    }

    /// A directory for files of a host; it survives a power cut.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn disk(&self, host: u8) -> Result<PathBuf> {
        let path = self.dir.path().join(format!("h{host}"));
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// Where the bed keeps its files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A command that will run on a host.
    ///
    /// # Errors
    /// When the host is off.
    pub fn command(&self, host: u8, program: &str) -> Result<Command> {
        let init = self.host(host)?.init.with_context(|| format!("host {host} is off"))?;
        let mut command = Command::new("nsenter");
        command.args(["-t", &init.to_string(), "-m", "-n", "-p", "-u", "--", "setpriv", FORBIDDEN, "--", program]);
        Ok(command)
    }

    /// A command that will run on the client's host.
    ///
    /// # Errors
    /// When the bed is being taken down.
    pub fn client_command(&self, program: &str) -> Result<Command> {
        self.command(CLIENT, program)
    }

    /// The way into a host's network, for a thread.
    ///
    /// # Errors
    /// When the host is off.
    pub fn network(&self, host: u8) -> Result<Network> {
        let path = format!("/run/netns/{}", self.namespace(host));
        Ok(Network(fs::File::open(&path).with_context(|| format!("open {path}"))?))
    }

    /// The way into the client's network.
    ///
    /// # Errors
    /// When the bed is being taken down.
    pub fn client_network(&self) -> Result<Network> {
        self.network(CLIENT)
    }

    /// Switches a host off as a power cut does. One that is off stays off.
    ///
    /// # Errors
    /// When its processes do not go away.
    pub fn power_off(&mut self, host: u8) -> Result<()> {
        let port = format!("h{host}");
        let at = self.position(host)?;
        if self.hosts[at].outer.is_none() {
            return Ok(());
        }
        self.switch(&["ip", "link", "set", &port, "down"])?;
        let Host { outer, init, .. } = &mut self.hosts[at];
        if let Some(init) = init.take() {
            // The kernel kills everything in the host with its process 1.
            kill(init, Signal::SIGKILL).context("kill process 1 of the host")?;
        }
        if let Some(mut outer) = outer.take() {
            let until = Instant::now() + HOST_DEADLINE;
            while outer.try_wait()?.is_none() {
                ensure!(Instant::now() < until, "host {host} does not end");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        run("ip", &["netns", "del", &self.namespace(host)])
    }

    /// Switches a host on; its disk is as it was.
    ///
    /// # Errors
    /// When it is on already, or cannot be made.
    pub fn power_on(&mut self, host: u8) -> Result<()> {
        let at = self.position(host)?;
        ensure!(self.hosts[at].outer.is_none(), "host {host} is on already");
        self.make_cable(host)?;
        let ready = self.disk(host)?.join("ready");
        // It may be there from before.
        if ready.exists() {
            fs::remove_file(&ready)?;
        }
        let script = "mount -t proc proc /proc && hostname \"$2\" && touch \"$1\" && \
                      trap 'exit 0' TERM && while :; do sleep 3600 & wait $!; done";
        let outer = Command::new("ip")
            .args(["netns", "exec", &self.namespace(host), "setpriv", FORBIDDEN, "--"])
            .args(["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--propagation", "private"])
            .args(["sh", "-c", script, "init"])
            .arg(&ready)
            .arg(format!("h{host}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.dir.path().join(format!("h{host}.log")))?)
            .spawn()
            .context("start a host")?;
        let id = outer.id();
        self.hosts[at].outer = Some(outer);
        let until = Instant::now() + HOST_DEADLINE;
        while !ready.exists() {
            ensure!(Instant::now() < until, "host {host} does not start");
            std::thread::sleep(Duration::from_millis(2));
        }
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
        let init = children.split_whitespace().next().context("the host has no process 1")?;
        self.hosts[at].init = Some(Pid::from_raw(init.parse()?));
        Ok(())
    }

    /// Cuts a host off from everybody.
    ///
    /// # Errors
    /// When the switch refuses.
    pub fn cut_off(&self, host: u8) -> Result<()> {
        for other in &self.hosts {
            if other.number != host {
                self.cut(host, other.number)?;
            }
        }
        Ok(())
    }

    /// Cuts two hosts from each other.
    ///
    /// # Errors
    /// When the switch refuses.
    pub fn cut(&self, one: u8, other: u8) -> Result<()> {
        let element = format!("{{ \"h{one}\" . \"h{other}\", \"h{other}\" . \"h{one}\" }}");
        self.switch(&["nft", "add", "element", "bridge", "bed", "cut", &element])
    }

    /// Mends every cut.
    ///
    /// # Errors
    /// When the switch refuses.
    pub fn heal(&self) -> Result<()> {
        self.switch(&["nft", "flush", "set", "bridge", "bed", "cut"])
    }

    fn position(&self, host: u8) -> Result<usize> {
        self.hosts.iter().position(|other| other.number == host).with_context(|| format!("there is no host {host}"))
    }

    fn host(&self, host: u8) -> Result<&Host> {
        Ok(&self.hosts[self.position(host)?])
    }

    fn namespace(&self, host: u8) -> String {
        format!("{}-h{host}", self.name)
    }

    fn switch(&self, command: &[&str]) -> Result<()> {
        let mut args = vec!["netns", "exec"];
        let namespace = format!("{}-sw", self.name);
        args.push(&namespace);
        args.extend(command);
        run("ip", &args)
    }

    fn make_switch(&self) -> Result<()> {
        run("ip", &["netns", "add", &format!("{}-sw", self.name)])?;
        self.switch(&["ip", "link", "add", "br0", "type", "bridge", "forward_delay", "0", "mcast_snooping", "0"])?;
        self.switch(&["ip", "link", "set", "br0", "up"])?;
        let rules = "table bridge bed {
            set cut { type ifname . ifname; }
            chain forward {
                type filter hook forward priority 0;
                iifname . oifname @cut counter drop
            }
        }";
        let mut nft = Command::new("ip")
            .args(["netns", "exec", &format!("{}-sw", self.name), "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .context("run nft")?;
        nft.stdin.take().context("nft takes its rules from standard input")?.write_all(rules.as_bytes())?;
        ensure!(nft.wait()?.success(), "nft refused the switch's rules");
        Ok(())
    }

    fn make_cable(&self, host: u8) -> Result<()> {
        let (namespace, port, switch) = (self.namespace(host), format!("h{host}"), format!("{}-sw", self.name));
        // After a power cut the switch's end may be there still.
        if run("ip", &["-n", &switch, "link", "show", &port]).is_ok() {
            run("ip", &["-n", &switch, "link", "del", &port])?;
        }
        run("ip", &["netns", "add", &namespace])?;
        let mac = format!("02:00:00:00:00:{host:02x}");
        run(
            "ip",
            &[
                "-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &namespace,
                "address", &mac,
            ],
        )?;
        run("ip", &["-n", &switch, "link", "set", &port, "master", "br0", "up"])?;
        run("ip", &["-n", &namespace, "link", "set", "lo", "up"])?;
        let address = format!("{}/24", self.address(host));
        run("ip", &["-n", &namespace, "addr", "add", &address, "dev", "eth0"])?;
        run("ip", &["-n", &namespace, "link", "set", "eth0", "up"])
    }
}

/// A network that threads can enter.
pub struct Network(fs::File);

impl Network {
    /// Moves the calling thread there for good: what it connects to from now on is the bed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter(&self) -> Result<()> {
        nix::sched::setns(&self.0, nix::sched::CloneFlags::CLONE_NEWNET).context("enter a host's network")
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let numbers: Vec<u8> = self.hosts.iter().map(|host| host.number).collect();
        for number in numbers {
            if let Err(error) = self.power_off(number) {
                eprintln!("host {number} is not cleanly gone: {error:#}");
            }
        }
        if let Err(error) = run("ip", &["netns", "del", &format!("{}-sw", self.name)]) {
            eprintln!("the switch is not cleanly gone: {error:#}");
        }
    }
}

/// Runs a command and fails with what it said.
fn run(program: &str, args: &[&str]) -> Result<()> {
    let output =
        Command::new(program).args(args).stdin(Stdio::null()).output().with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
