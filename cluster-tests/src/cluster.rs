//! A Quorate cluster on a bed: one host a node, each with the real binary.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::bed::Bed;
use crate::rest::Access;

/// How long a cluster may take to come up, or to be whole again after a fault is gone.
const WHOLE_LIMIT: Duration = Duration::from_secs(120);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How soon silence counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timing {
    /// As nodes come: for figures.
    Usual,
    /// For tests of what must hold: three nodes with their PostgreSQL and RabbitMQ on two cores starve each other now
    /// and then, and a failover that nobody asked for would spoil the story.
    Patient,
}

impl Timing {
    fn config(self) -> &'static str {
        match self {
            Self::Usual => "",
            Self::Patient => "[timing]\nlease_ms = 2000\nsilence_ms = 1500\n",
        }
    }
}

/// A running cluster. Dropping it ends everything.
pub struct Cluster {
    bed: Bed,
    binary: PathBuf,
    nodes: u8,
    timing: Timing,
    daemons: Vec<Option<Child>>,
    password: String,
}

impl Cluster {
    /// Makes a bed, founds a cluster on its first host, joins the others, and waits until it is whole.
    ///
    /// # Errors
    /// When any of that fails; the logs are quoted.
    pub fn start(number: u8, nodes: u8, timing: Timing) -> Result<Self> {
        let mut cluster = Self::start_one_of(number, nodes, timing)?;
        for host in 2..=nodes {
            cluster.join(1, host)?;
            cluster.start_daemon(host)?;
        }
        cluster.wait_until_whole()?;
        Ok(cluster)
    }

    /// Makes a bed and founds a cluster on its first host; the others have a configuration only.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_one_of(number: u8, nodes: u8, timing: Timing) -> Result<Self> {
        let bed = Bed::new(number, nodes)?;
        let daemons = (0..nodes).map(|_| None).collect();
        let mut cluster = Self { bed, binary: binary()?, nodes, timing, daemons, password: String::new() };
        for host in 1..=nodes {
            cluster.write_config(host)?;
        }
        let made = cluster.quorate(1, &["cluster", "init", "--json"])?;
        let made: Value = serde_json::from_str(&made).context("read what `cluster init` printed")?;
        made["password"].as_str().context("init prints the password")?.clone_into(&mut cluster.password);
        cluster.start_daemon(1)?;
        cluster.wait("the first node serves", |view| view["serving"] == true)?;
        Ok(cluster)
    }

    fn write_config(&self, host: u8) -> Result<()> {
        let disk = self.bed.disk(host)?;
        for dir in [self.bed.dir(), &disk] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
        }
        let text = format!(
            "name = \"node{host}\"\ndata_dir = \"{0}/data\"\nresources_dir = \"{0}/resources\"\n\
             [address]\nnode = \"{1}\"\ncluster = \"{2}\"\ninterface = \"eth0\"\nprefix = 24\n{3}",
            disk.display(),
            self.bed.address(host),
            self.bed.cluster_address(),
            self.timing.config(),
        );
        Ok(fs::write(self.config(host)?, text)?)
    }

    fn config(&self, host: u8) -> Result<PathBuf> {
        Ok(self.bed.disk(host)?.join("node.toml"))
    }

    /// The hosts, and what can be done to them.
    #[must_use]
    pub fn bed(&self) -> &Bed {
        &self.bed
    }

    /// How a client reaches the cluster as `admin`.
    ///
    /// # Errors
    /// When the CA file is gone.
    pub fn access(&self) -> Result<Access> {
        let ca_pem = fs::read(self.bed.disk(1)?.join("data/pki/ca.pem")).context("read the CA file")?;
        Ok(Access { address: self.bed.cluster_address(), ca_pem, password: self.password.clone() })
    }

    /// Runs `quorate` on a host with that host's configuration.
    ///
    /// # Errors
    /// What it said on standard error, when it fails.
    pub fn quorate(&self, host: u8, args: &[&str]) -> Result<String> {
        let mut command = self.bed.command(host, &self.binary.display().to_string())?;
        run(command.args(args).env("QUORATE_CONFIG", self.config(host)?).stdin(Stdio::null()))
    }

    /// Admits a host with a one-time token that a member makes.
    ///
    /// # Errors
    /// When the member refuses.
    pub fn join(&self, member: u8, host: u8) -> Result<String> {
        let token = self.quorate(member, &["cluster", "token"])?;
        let file = self.bed.disk(host)?.join("token");
        fs::write(&file, token)?;
        let file = file.display().to_string();
        let address = self.bed.address(member).to_string();
        self.quorate(host, &["cluster", "join", "--address", &address, "--token-file", &file])
    }

    /// Starts the daemon of a host that is on.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_daemon(&mut self, host: u8) -> Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log(host)?)?;
        let child = self
            .bed
            .command(host, &self.binary.display().to_string())?
            .arg("run")
            .env("QUORATE_CONFIG", self.config(host)?)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start a node")?;
        self.daemons[usize::from(host - 1)] = Some(child);
        Ok(())
    }

    fn log(&self, host: u8) -> Result<PathBuf> {
        Ok(self.bed.disk(host)?.join("node.log"))
    }

    /// Keeps every node's log where `QUORATE_LOGS` says (a directory), for a look after a failure. Says where.
    #[must_use]
    pub fn keep_logs(&self) -> String {
        let Some(dir) = std::env::var_os("QUORATE_LOGS").map(PathBuf::from) else {
            let words = (1..=self.nodes).map(|host| format!("--- node {host}\n{}", self.last_words(host)));
            return words.collect::<Vec<_>>().join("\n");
        };
        for host in 1..=self.nodes {
            let to = dir.join(format!("node{host}.log"));
            let kept = fs::create_dir_all(&dir).and_then(|()| fs::copy(self.log(host).unwrap_or_default(), &to));
            if let Err(error) = kept {
                return format!("{} was not kept: {error}", to.display());
            }
        }
        format!("the nodes' logs are in {}", dir.display())
    }

    fn last_words(&self, host: u8) -> String {
        const LINES: usize = 40;
        let text = self.log(host).and_then(|path| Ok(fs::read_to_string(path)?)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }

    /// `kill -9` of everything on a host; its network stays up.
    ///
    /// # Errors
    /// When the host is off.
    pub fn kill_everything(&mut self, host: u8) -> Result<()> {
        // In the host's own process namespace -1 is everything but its process 1.
        let mut command = self.bed.command(host, "sh")?;
        command.args(["-c", "kill -9 -1"]).stdin(Stdio::null()).status().context("kill everything on a host")?;
        self.reap(host);
        Ok(())
    }

    fn reap(&mut self, host: u8) {
        if let Some(mut child) = self.daemons[usize::from(host - 1)].take() {
            // It was killed: there is nothing to learn from how it ended.
            let _ = child.wait();
        }
    }

    /// Cuts a host's power.
    ///
    /// # Errors
    /// When its processes do not go away.
    pub fn power_off(&mut self, host: u8) -> Result<()> {
        self.bed.power_off(host)?;
        self.reap(host);
        Ok(())
    }

    /// Switches a host on and starts its daemon.
    ///
    /// # Errors
    /// When either fails.
    pub fn power_on(&mut self, host: u8) -> Result<()> {
        self.power_on_only(host)?;
        self.start_daemon(host)
    }

    /// Switches a host on; its daemon does not run yet.
    ///
    /// # Errors
    /// When it is on already.
    pub fn power_on_only(&mut self, host: u8) -> Result<()> {
        self.bed.power_on(host)
    }

    /// Removes everything a node had, as a new disk would.
    ///
    /// # Errors
    /// When the files cannot be removed.
    pub fn wipe(&mut self, host: u8) -> Result<()> {
        let disk = self.bed.disk(host)?;
        for dir in ["data", "resources"] {
            fs::remove_dir_all(disk.join(dir)).with_context(|| format!("wipe {dir} of host {host}"))?;
        }
        Ok(())
    }

    /// Removes what makes a node a member.
    ///
    /// # Errors
    /// When the files cannot be removed.
    pub fn wipe_identity(&mut self, host: u8) -> Result<()> {
        let keys = self.bed.disk(host)?.join("data/pki");
        fs::remove_dir_all(&keys).with_context(|| format!("remove {}", keys.display()))
    }

    /// The cluster as one host sees it.
    ///
    /// # Errors
    /// When its daemon does not answer.
    pub fn view(&self, host: u8) -> Result<Value> {
        Ok(serde_json::from_str(&self.quorate(host, &["cluster", "status", "--json"])?)?)
    }

    /// The first view in which a node serves.
    fn best_view(&self) -> Option<Value> {
        let views: Vec<Value> = (1..=self.nodes).filter_map(|host| self.view(host).ok()).collect();
        views.iter().find(|view| view["serving"] == true).or(views.first()).cloned()
    }

    /// Waits until some view satisfies the condition.
    ///
    /// # Errors
    /// After two minutes, with the last view.
    pub fn wait(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
        let until = Instant::now() + WHOLE_LIMIT;
        loop {
            let view = self.best_view();
            if let Some(view) = &view
                && is_so(view)
            {
                return Ok(view.clone());
            }
            if Instant::now() > until {
                bail!("still waiting until {what}; last seen: {view:?}");
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Waits until every host's node is a voting member that follows or serves and takes part in every commit.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn wait_until_whole(&self) -> Result<Value> {
        let nodes = usize::from(self.nodes);
        self.wait("the cluster is whole", |view| {
            let members = view["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
            let fine = |node: &Value| {
                node["voter"] == true
                    && (node["role"] == "active" || node["role"] == "standby")
                    && node["epoch"] == view["epoch"]
            };
            view["serving"] == true
                && members.len() == nodes
                && members.iter().all(fine)
                && view["sync"]["members"].as_array().is_some_and(|set| set.len() == nodes)
        })
    }

    /// The host whose node is active.
    ///
    /// # Errors
    /// When no node is.
    pub fn active(&self) -> Result<u8> {
        let view = self.wait("a node serves", |view| view["serving"] == true)?;
        let node = view["nodes"]
            .as_array()
            .and_then(|nodes| nodes.iter().find(|node| node["id"] == view["active"]))
            .context("the active node is no member")?;
        self.host_of(node)
    }

    /// A host whose node is a standby.
    ///
    /// # Errors
    /// When there is none.
    pub fn standby(&self) -> Result<u8> {
        let view = self.wait_until_whole()?;
        let node = view["nodes"]
            .as_array()
            .and_then(|nodes| nodes.iter().find(|node| node["role"] == "standby"))
            .context("there is no standby")?;
        self.host_of(node)
    }

    fn host_of(&self, node: &Value) -> Result<u8> {
        let address: Ipv4Addr = node["address"].as_str().context("a member has an address")?.parse()?;
        let host = address.octets()[3];
        ensure!((1..=self.nodes).contains(&host), "{address} is no host of the bed");
        Ok(host)
    }

    /// A session with the PostgreSQL that runs on a host, over its own socket.
    ///
    /// # Errors
    /// When the host is off.
    pub fn local_psql(&self, host: u8) -> Result<Command> {
        let socket = self.bed.disk(host)?.join("data/run/pg");
        let mut command = self.bed.command(host, "psql")?;
        command.args(["-X", "-q", "-A", "-t", "-U", "quorate", "-d", "quorate", "-h"]).arg(socket);
        Ok(command)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::env::var_os("QUORATE_LOGS").is_some() {
            eprintln!("{}", self.keep_logs());
        }
        for host in 1..=self.nodes {
            if let Err(error) = self.bed.power_off(host) {
                eprintln!("host {host} was not switched off: {error:#}");
            }
            self.reap(host);
        }
    }
}

/// The program under test: `QUORATE_BIN`, or the one that was built beside this test.
fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("QUORATE_BIN") {
        return Ok(path.into());
    }
    let me = std::env::current_exe().context("find this test's own file")?;
    let beside = |dir: &Path| Some(dir.join("quorate")).filter(|path| path.is_file());
    me.ancestors()
        .skip(1)
        .take(2)
        .find_map(beside)
        .context("there is no `quorate` beside this test: build it first (`cargo build --bin quorate`)")
}

/// Runs a command to its end.
///
/// # Errors
/// What it said, when it fails.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
