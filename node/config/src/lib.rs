//! `node.toml`: what the operator writes, checked and turned into what the program uses.
//!
//! The file is strict: an unknown key is an error that names it. Every key has a default but `name`, `data_dir` and
//! `address.node`. [`Config::load`] is the only entry.

mod file;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_types::ports;

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there or not readable.
    #[error("read {path}: is the path right, and may this user read it?")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It is not TOML, or has an unknown or mistyped key.
    #[error("{path}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// With line, column and snippet.
        message: String,
    },
    /// A value is out of range, or two do not fit together.
    #[error("{path}: `{key}` must be {want}, found {found}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key as written in the file.
        key: &'static str,
        /// What is allowed.
        want: String,
        /// What stands there.
        found: String,
    },
}

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node's name as operators know it; unique in the cluster.
    pub name: String,
    /// Everything this node keeps but the resources directory.
    pub data_dir: PathBuf,
    /// Blueprints, plugins and the rest of the replicated files.
    pub resources_dir: PathBuf,
    /// Where the node and the cluster are reached.
    pub address: Address,
    /// The port numbers.
    pub ports: Ports,
    /// How long things may take.
    pub timing: Timing,
    /// The local PostgreSQL.
    pub postgres: Postgres,
    /// The local RabbitMQ.
    pub rabbitmq: RabbitMq,
    /// Upload and archive limits.
    pub limits: Limits,
    /// Operations that this node's worker runs at once, `1..=1000`.
    pub worker_operations_max: usize,
}

/// Where the node and the cluster are reached.
#[derive(Debug, Clone)]
pub struct Address {
    /// This node's own address.
    pub node: IpAddr,
    /// The address that follows the active node. `None`: clients use the nodes' own addresses.
    pub cluster: Option<IpAddr>,
    /// The interface that carries the cluster address. `None`: the address is only bound, as on loopback.
    pub interface: Option<String>,
    /// Prefix length with which the cluster address is added to the interface.
    pub prefix: u8,
}

/// The port numbers; see [`quorate_types::ports`] for what each is for.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Ports {
    pub http: u16,
    pub https: u16,
    pub agents: u16,
    pub amqps: u16,
    pub amqp_management: u16,
    pub amqp_distribution: u16,
    pub raft: u16,
    pub gossip: u16,
    pub consul: u16,
    pub postgres: u16,
    pub replication: u16,
    pub resources: u16,
}

/// How long things may take.
#[derive(Debug, Clone)]
pub struct Timing {
    /// Raft's heartbeat.
    pub raft_heartbeat: Duration,
    /// The shortest silence after which a follower stands for election.
    pub raft_election_min: Duration,
    /// The longest.
    pub raft_election_max: Duration,
    /// How long the active node may be silent before it counts as lost.
    pub silence: Duration,
    /// How often the active node renews its lease.
    pub lease_interval: Duration,
    /// How long the active node serves without a majority's word.
    pub lease: Duration,
    /// How long a granted node may take to open its epoch.
    pub promotion: Duration,
    /// How long a request waits for an active node.
    pub hold_requests: Duration,
    /// How long an operation waits for the worker it was given to before another one gets it.
    pub worker_lost_after: Duration,
}

/// The local PostgreSQL.
#[derive(Debug, Clone)]
pub struct Postgres {
    /// Holds `postgres`, `initdb`, `pg_rewind` …
    pub bin_dir: PathBuf,
    /// The account it runs under when quorate is root.
    pub user: String,
    /// Directory of its sockets; its path must be short (a socket path has 107 bytes).
    pub socket_dir: PathBuf,
}

/// The local RabbitMQ.
#[derive(Debug, Clone)]
pub struct RabbitMq {
    /// `rabbitmq-server` itself, not Debian's wrapper.
    pub program: PathBuf,
    /// The account it runs under when quorate is root.
    pub user: String,
}

/// Upload and archive limits.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of one upload.
    pub upload_bytes_max: u64,
    /// Bytes that one archive may unpack to.
    pub unpacked_bytes_max: u64,
    /// Files and folders in one archive.
    pub archive_entries_max: u64,
    /// Requests that wait for an active node at once.
    pub held_requests_max: usize,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the key and what is allowed there.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Checks the text of a file; `path` only stands in the errors.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let file: file::NodeFile = toml::from_str(text).map_err(|error| ConfigError::Parse {
            path: path.to_owned(),
            message: error.to_string().trim().to_owned(),
        })?;
        file.check(path)
    }

    /// This node's address with a port.
    #[must_use]
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address.node, port)
    }

    /// The address that clients are told: the cluster's, or this node's where there is none.
    #[must_use]
    pub fn client_address(&self) -> IpAddr {
        self.address.cluster.unwrap_or(self.address.node)
    }
}

impl Default for Ports {
    fn default() -> Self {
        Self {
            http: ports::HTTP,
            https: ports::HTTPS,
            agents: ports::AGENTS,
            amqps: ports::AMQPS,
            amqp_management: ports::AMQP_MANAGEMENT,
            amqp_distribution: ports::AMQP_DISTRIBUTION,
            raft: ports::RAFT,
            gossip: ports::GOSSIP,
            consul: ports::CONSUL,
            postgres: ports::POSTGRES,
            replication: ports::REPLICATION,
            resources: ports::RESOURCES,
        }
    }
}

impl Ports {
    /// Every port with its key in the file, for the check that all are free.
    #[must_use]
    pub fn all(&self) -> [(&'static str, u16); 12] {
        [
            ("http", self.http),
            ("https", self.https),
            ("agents", self.agents),
            ("amqps", self.amqps),
            ("amqp_management", self.amqp_management),
            ("amqp_distribution", self.amqp_distribution),
            ("raft", self.raft),
            ("gossip", self.gossip),
            ("consul", self.consul),
            ("postgres", self.postgres),
            ("replication", self.replication),
            ("resources", self.resources),
        ]
    }
}
