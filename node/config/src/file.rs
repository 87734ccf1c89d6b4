//! The file as the operator writes it, and the checks between it and the program.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::{Address, Config, ConfigError, Limits, Ports, Postgres, RabbitMq, Timing};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeFile {
    name: String,
    data_dir: PathBuf,
    resources_dir: Option<PathBuf>,
    address: AddressFile,
    #[serde(default)]
    ports: PortsFile,
    #[serde(default)]
    timing: TimingFile,
    #[serde(default)]
    postgres: PostgresFile,
    #[serde(default)]
    rabbitmq: RabbitMqFile,
    #[serde(default)]
    limits: LimitsFile,
    #[serde(default)]
    worker: WorkerFile,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AddressFile {
    node: IpAddr,
    cluster: Option<IpAddr>,
    interface: Option<String>,
    prefix: Option<u8>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct PortsFile {
    http: Option<u16>,
    https: Option<u16>,
    agents: Option<u16>,
    amqps: Option<u16>,
    amqp_management: Option<u16>,
    amqp_distribution: Option<u16>,
    raft: Option<u16>,
    gossip: Option<u16>,
    consul: Option<u16>,
    postgres: Option<u16>,
    replication: Option<u16>,
    resources: Option<u16>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TimingFile {
    raft_heartbeat_ms: u64,
    raft_election_min_ms: u64,
    raft_election_max_ms: u64,
    silence_ms: u64,
    lease_interval_ms: u64,
    lease_ms: u64,
    promotion_ms: u64,
    hold_requests_ms: u64,
    worker_lost_after_ms: u64,
}

impl Default for TimingFile {
    fn default() -> Self {
        Self {
            raft_heartbeat_ms: 50,
            raft_election_min_ms: 400,
            raft_election_max_ms: 700,
            silence_ms: 600,
            lease_interval_ms: 100,
            lease_ms: 600,
            promotion_ms: 5_000,
            hold_requests_ms: 15_000,
            worker_lost_after_ms: 10_000,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PostgresFile {
    bin_dir: PathBuf,
    user: String,
    socket_dir: Option<PathBuf>,
}

impl Default for PostgresFile {
    fn default() -> Self {
        Self { bin_dir: "/usr/lib/postgresql/15/bin".into(), user: "postgres".into(), socket_dir: None }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RabbitMqFile {
    program: PathBuf,
    user: String,
}

impl Default for RabbitMqFile {
    fn default() -> Self {
        Self { program: "/usr/lib/rabbitmq/bin/rabbitmq-server".into(), user: "rabbitmq".into() }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LimitsFile {
    upload_mib: u64,
    unpacked_mib: u64,
    archive_entries: u64,
    held_requests: usize,
}

impl Default for LimitsFile {
    fn default() -> Self {
        Self { upload_mib: 1024, unpacked_mib: 4096, archive_entries: 100_000, held_requests: 1024 }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WorkerFile {
    operations: usize,
}

impl Default for WorkerFile {
    fn default() -> Self {
        Self { operations: 20 }
    }
}

/// The longest socket directory: `sun_path` holds 108 bytes with its final NUL, `/upstream/.s.PGSQL.5432` takes 23.
const SOCKET_DIR_BYTES_MAX: usize = 84;

impl NodeFile {
    pub fn check(self, path: &Path) -> Result<Config, ConfigError> {
        let fail =
            |key, want: String, found: String| Err(ConfigError::Value { path: path.to_owned(), key, want, found });
        let good_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        if self.name.is_empty() || self.name.len() > 63 || !self.name.chars().all(good_name) {
            return fail("name", "1 to 63 letters, digits, `-` or `.`".into(), format!("{:?}", self.name));
        }
        for (key, dir) in [("data_dir", Some(&self.data_dir)), ("resources_dir", self.resources_dir.as_ref())] {
            if let Some(dir) = dir
                && !dir.is_absolute()
            {
                return fail(key, "an absolute path".into(), dir.display().to_string());
            }
        }
        if self.address.cluster == Some(self.address.node) {
            return fail(
                "address.cluster",
                "an address of its own, not the node's".into(),
                self.address.node.to_string(),
            );
        }
        let full = if self.address.cluster.unwrap_or(self.address.node).is_ipv4() { 32 } else { 128 };
        let prefix = self.address.prefix.unwrap_or(full);
        if prefix == 0 || prefix > full {
            return fail("address.prefix", format!("1 to {full}"), prefix.to_string());
        }
        let t = &self.timing;
        if !(10..=5_000).contains(&t.raft_heartbeat_ms) {
            return fail("timing.raft_heartbeat_ms", "10 to 5000".into(), t.raft_heartbeat_ms.to_string());
        }
        if t.raft_election_min_ms < 3 * t.raft_heartbeat_ms {
            return fail(
                "timing.raft_election_min_ms",
                "three heartbeats or more".into(),
                t.raft_election_min_ms.to_string(),
            );
        }
        if t.raft_election_max_ms <= t.raft_election_min_ms {
            return fail(
                "timing.raft_election_max_ms",
                "more than timing.raft_election_min_ms".into(),
                t.raft_election_max_ms.to_string(),
            );
        }
        if t.lease_interval_ms == 0 || t.lease_ms < 3 * t.lease_interval_ms {
            return fail(
                "timing.lease_ms",
                "three times timing.lease_interval_ms or more".into(),
                t.lease_ms.to_string(),
            );
        }
        for (key, value, least) in [
            ("timing.silence_ms", t.silence_ms, 2 * t.raft_heartbeat_ms),
            ("timing.promotion_ms", t.promotion_ms, 1_000),
            ("timing.worker_lost_after_ms", t.worker_lost_after_ms, 1_000),
        ] {
            if value < least {
                return fail(key, format!("{least} or more"), value.to_string());
            }
        }
        if t.hold_requests_ms > 120_000 {
            return fail("timing.hold_requests_ms", "0 to 120000".into(), t.hold_requests_ms.to_string());
        }
        if !(1..=1000).contains(&self.worker.operations) {
            return fail("worker.operations", "1 to 1000".into(), self.worker.operations.to_string());
        }
        let socket_dir = self.postgres.socket_dir.unwrap_or_else(|| self.data_dir.join("run"));
        if socket_dir.as_os_str().len() > SOCKET_DIR_BYTES_MAX {
            return fail(
                "postgres.socket_dir",
                format!("at most {SOCKET_DIR_BYTES_MAX} bytes long (set it when data_dir is longer)"),
                socket_dir.display().to_string(),
            );
        }
        let ports = self.ports.check(path)?;
        let ms = Duration::from_millis;
        Ok(Config {
            name: self.name,
            resources_dir: self.resources_dir.unwrap_or_else(|| "/opt/manager/resources".into()),
            data_dir: self.data_dir,
            address: Address {
                node: self.address.node,
                cluster: self.address.cluster,
                interface: self.address.interface,
                prefix,
            },
            ports,
            timing: Timing {
                raft_heartbeat: ms(t.raft_heartbeat_ms),
                raft_election_min: ms(t.raft_election_min_ms),
                raft_election_max: ms(t.raft_election_max_ms),
                silence: ms(t.silence_ms),
                lease_interval: ms(t.lease_interval_ms),
                lease: ms(t.lease_ms),
                promotion: ms(t.promotion_ms),
                hold_requests: ms(t.hold_requests_ms),
                worker_lost_after: ms(t.worker_lost_after_ms),
            },
            postgres: Postgres { bin_dir: self.postgres.bin_dir, user: self.postgres.user, socket_dir },
            rabbitmq: RabbitMq { program: self.rabbitmq.program, user: self.rabbitmq.user },
            limits: Limits {
                upload_bytes_max: self.limits.upload_mib << 20,
                unpacked_bytes_max: self.limits.unpacked_mib << 20,
                archive_entries_max: self.limits.archive_entries,
                held_requests_max: self.limits.held_requests,
            },
            worker_operations_max: self.worker.operations,
        })
    }
}

impl PortsFile {
    fn check(self, path: &Path) -> Result<Ports, ConfigError> {
        let usual = Ports::default();
        let ports = Ports {
            http: self.http.unwrap_or(usual.http),
            https: self.https.unwrap_or(usual.https),
            agents: self.agents.unwrap_or(usual.agents),
            amqps: self.amqps.unwrap_or(usual.amqps),
            amqp_management: self.amqp_management.unwrap_or(usual.amqp_management),
            amqp_distribution: self.amqp_distribution.unwrap_or(usual.amqp_distribution),
            raft: self.raft.unwrap_or(usual.raft),
            gossip: self.gossip.unwrap_or(usual.gossip),
            consul: self.consul.unwrap_or(usual.consul),
            postgres: self.postgres.unwrap_or(usual.postgres),
            replication: self.replication.unwrap_or(usual.replication),
            resources: self.resources.unwrap_or(usual.resources),
        };
        let all = ports.all();
        for (at, (key, port)) in all.iter().enumerate() {
            let twin = all[..at].iter().find(|(_, other)| other == port);
            if *port == 0 || twin.is_some() {
                let found =
                    twin.map_or_else(|| "0".to_owned(), |(other, _)| format!("{port}, which ports.{other} has"));
                return Err(ConfigError::Value {
                    path: path.to_owned(),
                    key: match *key {
                        "http" => "ports.http",
                        "https" => "ports.https",
                        "agents" => "ports.agents",
                        "amqps" => "ports.amqps",
                        "amqp_management" => "ports.amqp_management",
                        "amqp_distribution" => "ports.amqp_distribution",
                        "raft" => "ports.raft",
                        "gossip" => "ports.gossip",
                        "consul" => "ports.consul",
                        "postgres" => "ports.postgres",
                        "replication" => "ports.replication",
                        _ => "ports.resources",
                    },
                    want: "1 to 65535 and used once".into(),
                    found,
                });
            }
        }
        Ok(ports)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("node.toml"))
    }

    const SMALL: &str = "name = \"mgr-1\"\ndata_dir = \"/var/lib/quorate\"\n[address]\nnode = \"10.0.0.11\"\n";

    #[test]
    fn three_keys_are_enough() {
        let config = parse(SMALL).unwrap();
        assert_eq!(config.ports.https, 443);
        assert_eq!(config.address.prefix, 32);
        assert_eq!(config.resources_dir, Path::new("/opt/manager/resources"));
        assert_eq!(config.client_address(), config.address.node);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = parse(&format!("{SMALL}clustre = \"10.0.0.100\"\n")).unwrap_err().to_string();
        assert!(error.contains("clustre") && error.contains("line 5"), "{error}");
    }

    #[test]
    fn relations_between_keys_are_checked() {
        let cases = [
            ("[timing]\nraft_election_min_ms = 100\n", "timing.raft_election_min_ms"),
            ("[timing]\nlease_ms = 200\n", "timing.lease_ms"),
            ("[ports]\nhttp = 443\n", "ports.https"),
            ("[worker]\noperations = 0\n", "worker.operations"),
            (
                "[postgres]\nsocket_dir = \"/a23456789012345678901234567890123456789012345678901234567890123456789012345678901234567890\"\n",
                "postgres.socket_dir",
            ),
        ];
        for (text, key) in cases {
            let error = parse(&format!("{SMALL}{text}")).unwrap_err().to_string();
            assert!(error.contains(key), "{text} should name {key}: {error}");
        }
        let error = parse(&SMALL.replace("10.0.0.11", "10.0.0.11\"\ncluster = \"10.0.0.11")).unwrap_err().to_string();
        assert!(error.contains("address.cluster"), "{error}");
    }
}
