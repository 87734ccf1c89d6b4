//! The demo's directory: one file about the whole, one directory a node.

use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use quorate_config::Config;
use quorate_types::NodeId;
use serde::{Deserialize, Serialize};

use crate::pki::write_file;

/// The address at which clients reach the cluster.
const CLUSTER_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 10, 100));

/// A directory that holds a demo, or will.
pub struct Layout {
    dir: PathBuf,
}

/// What the demo remembers between two starts.
#[derive(Serialize, Deserialize)]
struct DemoFile {
    /// The program that made the directory.
    version: String,
    nodes: u8,
    password: String,
}

/// A demo that exists.
pub struct Demo {
    pub dir: PathBuf,
    pub nodes: Vec<DemoNode>,
    pub password: String,
    pub cluster_address: IpAddr,
}

/// One of its nodes.
pub struct DemoNode {
    pub id: NodeId,
    pub dir: PathBuf,
    pub config: Config,
}

impl Layout {
    pub fn new(dir: &Path) -> anyhow::Result<Self> {
        let dir = std::path::absolute(dir).with_context(|| format!("make {} absolute", dir.display()))?;
        Ok(Self { dir })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn file(&self) -> PathBuf {
        self.dir.join("demo.json")
    }

    /// Whether a demo was made here before.
    pub fn exists(&self) -> bool {
        self.file().exists()
    }

    /// The demo that was made here.
    pub fn load(&self) -> anyhow::Result<Demo> {
        let path = self.file();
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("read {} (`quorate demo` makes a demo there)", path.display()))?;
        let file: DemoFile = serde_json::from_str(&text)
            .with_context(|| format!("understand {}; was it made by another program?", path.display()))?;
        if file.version != env!("CARGO_PKG_VERSION") {
            bail!(
                "{} was made by quorate {}, this is {}: run that version, or move the directory away",
                self.dir.display(),
                file.version,
                env!("CARGO_PKG_VERSION")
            );
        }
        let nodes = (1..=file.nodes).map(|number| self.node(number)).collect::<anyhow::Result<_>>()?;
        Ok(Demo { dir: self.dir.clone(), nodes, password: file.password, cluster_address: CLUSTER_ADDRESS })
    }

    fn node(&self, number: u8) -> anyhow::Result<DemoNode> {
        let dir = self.dir.join(format!("n{number}"));
        let config = Config::load(&dir.join("node.toml"))?;
        Ok(DemoNode { id: NodeId(u64::from(number)), dir, config })
    }

    /// Writes the configuration of every node. What was there from an interrupted first start is used again.
    pub fn write_configs(&self, nodes: u8) -> anyhow::Result<Vec<DemoNode>> {
        for number in 1..=nodes {
            let dir = self.dir.join(format!("n{number}"));
            std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
            // PostgreSQL's and RabbitMQ's accounts must reach what is theirs inside.
            std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755))?;
            write_file(&dir.join("node.toml"), &node_toml(&dir, number), 0o644)?;
        }
        std::fs::set_permissions(&self.dir, std::fs::Permissions::from_mode(0o755))?;
        (1..=nodes).map(|number| self.node(number)).collect()
    }

    /// From here on the directory is a demo.
    pub fn finish(&self, nodes: u8, password: &str) -> anyhow::Result<()> {
        let file = DemoFile { version: env!("CARGO_PKG_VERSION").into(), nodes, password: password.to_owned() };
        Ok(write_file(&self.file(), &serde_json::to_string_pretty(&file)?, 0o600)?)
    }
}

/// The configuration of one node: as in production, but for the directories and the addresses.
fn node_toml(dir: &Path, number: u8) -> String {
    let text = |path: PathBuf| toml::Value::String(path.display().to_string()).to_string();
    format!(
        "# Written by `quorate demo`.\nname = \"node{number}\"\ndata_dir = {}\nresources_dir = {}\n\n\
         [address]\nnode = \"127.0.10.{number}\"\ncluster = \"{CLUSTER_ADDRESS}\"\n",
        text(dir.join("data")),
        text(dir.join("resources")),
    )
}

impl Demo {
    /// One node by its number.
    pub fn node(&self, id: NodeId) -> anyhow::Result<&DemoNode> {
        let last = self.nodes.len();
        self.nodes.iter().find(|node| node.id == id).ok_or_else(|| anyhow!("there is no {id}: n1 to n{last}"))
    }

    /// The authority's certificate, which clients need.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }
}

impl DemoNode {
    /// The configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.dir.join("node.toml")
    }

    /// Where the node's own log goes.
    pub fn log_file(&self) -> PathBuf {
        self.dir.join("node.log")
    }

    /// Where the number of its process is kept.
    pub fn pid_file(&self) -> PathBuf {
        self.dir.join("pid")
    }
}
