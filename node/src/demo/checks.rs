//! What must hold before anything starts.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use super::layout::{DemoNode, Layout};

/// Free disk space that one node needs: data directory, WAL, log and broker.
const DISK_BYTES_PER_NODE: u64 = 1 << 30;
/// The Debian packages that a node needs, each with a file that shows it is there.
const PACKAGES: [(&str, &str); 3] = [
    ("postgresql-15", "/usr/lib/postgresql/15/bin/postgres"),
    ("rabbitmq-server", "/usr/lib/rabbitmq/bin/rabbitmq-server"),
    ("python3", "/usr/bin/python3"),
];

/// Rights, packages and disk.
pub fn machine(layout: &Layout, nodes: u8) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the demo takes the ports of production (80, 443 …) and gives up rights for PostgreSQL: run it as root");
    }
    let missing: Vec<&str> =
        PACKAGES.iter().filter(|(_, file)| !Path::new(file).exists()).map(|(package, _)| *package).collect();
    if !missing.is_empty() {
        bail!("missing packages: {0}. Install them with `apt-get install {0}`", missing.join(" "));
    }
    let (_, postgres) = PACKAGES[0];
    let version = Command::new(postgres).arg("--version").output().with_context(|| format!("run {postgres}"))?;
    if !version.status.success() {
        bail!("{postgres} --version failed: {}", String::from_utf8_lossy(&version.stderr).trim());
    }
    std::fs::create_dir_all(layout.dir()).with_context(|| format!("make {}", layout.dir().display()))?;
    let stat = nix::sys::statvfs::statvfs(layout.dir())
        .with_context(|| format!("ask for the free space at {}", layout.dir().display()))?;
    #[allow(clippy::useless_conversion, reason = "the field's width differs between platforms")]
    let free = u64::from(stat.blocks_available()) * u64::from(stat.fragment_size());
    let needed = DISK_BYTES_PER_NODE * u64::from(nodes);
    if free < needed {
        bail!(
            "{} has {} MiB free, {nodes} node(s) need {} MiB: free some, or choose another place with --dir",
            layout.dir().display(),
            free >> 20,
            needed >> 20
        );
    }
    Ok(())
}

/// Every port of every node that is to start, and of the cluster address.
pub fn ports(nodes: &[&DemoNode]) -> anyhow::Result<()> {
    let mut taken = Vec::new();
    let mut probe = |address: IpAddr, port: u16, udp: bool| {
        let at = SocketAddr::new(address, port);
        let free =
            TcpListener::bind(at).map(drop).and_then(|()| if udp { UdpSocket::bind(at).map(drop) } else { Ok(()) });
        if let Err(error) = free {
            taken.push(format!("{at} ({error})"));
        }
    };
    for node in nodes {
        for (key, port) in node.config.ports.all() {
            // The broker's own distribution listens on another loopback address.
            if key != "amqp_distribution" {
                probe(node.config.address.node, port, key == "gossip");
            }
        }
    }
    if let Some((node, address)) = nodes.first().and_then(|node| Some((node, node.config.address.cluster?))) {
        let ports = &node.config.ports;
        for port in [ports.http, ports.https, ports.agents] {
            probe(address, port, false);
        }
    }
    if taken.is_empty() {
        return Ok(());
    }
    let shown = taken.iter().take(6).cloned().collect::<Vec<_>>().join(", ");
    let more = taken.len().saturating_sub(6);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    bail!("these addresses are taken: {shown}{rest}. See who has them with `ss -ltnp`; is another demo running?")
}
