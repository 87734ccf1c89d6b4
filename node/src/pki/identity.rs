//! Who this node is: the files below `pki/`, written by `cluster init` and `cluster join`.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use quorate_types::NodeId;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

use super::Authority;

/// Why the identity cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// `cluster init` or `cluster join` has not run here.
    #[error(
        "{0} is missing: this node belongs to no cluster yet; run `quorate cluster init` or `quorate cluster join`"
    )]
    NotAMember(PathBuf),
    /// The system refused.
    #[error("{what} {path}")]
    Io {
        /// read or write
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file is there and is not what it should be.
    #[error("{path} is damaged: {why}; restore it from a backup, or wipe this node and join it again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// The names of the files below `pki/`.
#[derive(Debug, Clone, Copy)]
pub enum KeyFile {
    /// The authority's certificate: what clients trust.
    Authority,
    /// The authority's key.
    AuthorityKey,
    /// This node's certificate.
    Certificate,
    /// This node's key.
    Key,
    /// Ids and the gossip key.
    Identity,
}

impl KeyFile {
    /// Where it is below the data directory.
    #[must_use]
    pub fn path(self, data_dir: &Path) -> PathBuf {
        data_dir.join("pki").join(match self {
            Self::Authority => "ca.pem",
            Self::AuthorityKey => "ca.key",
            Self::Certificate => "node.pem",
            Self::Key => "node.key",
            Self::Identity => "identity.json",
        })
    }
}

/// The version of `identity.json`.
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct IdentityFile {
    format: u32,
    cluster_id: String,
    node: NodeId,
    gossip_key: String,
    /// The first node makes the cluster when it starts with an empty Raft log.
    founder: bool,
}

/// Who this node is.
pub struct Identity {
    /// The cluster's id.
    pub cluster_id: String,
    /// This node's id.
    pub node: NodeId,
    /// Whether this node founded the cluster.
    pub founder: bool,
    /// The key of the gossip messages.
    pub gossip_key: [u8; 32],
    /// The authority.
    pub authority: Authority,
    /// This node's certificate.
    pub certificate_pem: String,
    /// This node's key.
    pub key_pem: String,
}

impl Identity {
    /// Reads all files.
    ///
    /// # Errors
    /// [`IdentityError`] says which file and what to do.
    pub fn load(data_dir: &Path) -> Result<Self, IdentityError> {
        let path = KeyFile::Identity.path(data_dir);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(IdentityError::NotAMember(path)),
            Err(source) => return Err(IdentityError::Io { what: "read", path, source }),
        };
        let damaged = |why: String| IdentityError::Damaged { path: path.clone(), why };
        let file: IdentityFile = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        if file.format != FORMAT {
            return Err(damaged(format!("format {} is not {FORMAT}", file.format)));
        }
        let gossip_key = hex::decode(&file.gossip_key)
            .ok()
            .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
            .ok_or_else(|| damaged("the gossip key is not 32 bytes in hex".into()))?;
        let read = |file: KeyFile| {
            let path = file.path(data_dir);
            std::fs::read_to_string(&path).map_err(|source| IdentityError::Io { what: "read", path, source })
        };
        Ok(Self {
            cluster_id: file.cluster_id,
            node: file.node,
            founder: file.founder,
            gossip_key,
            authority: Authority::from_pem(read(KeyFile::Authority)?, read(KeyFile::AuthorityKey)?),
            certificate_pem: read(KeyFile::Certificate)?,
            key_pem: read(KeyFile::Key)?,
        })
    }

    /// Writes all files, `identity.json` last: its presence means that the others are whole.
    ///
    /// # Errors
    /// [`IdentityError::Io`] names the file.
    pub fn store(&self, data_dir: &Path) -> Result<(), IdentityError> {
        let file = IdentityFile {
            format: FORMAT,
            cluster_id: self.cluster_id.clone(),
            node: self.node,
            gossip_key: hex::encode(self.gossip_key),
            founder: self.founder,
        };
        let json = serde_json::to_string_pretty(&file).expect("plain data always becomes JSON");
        write_file(&KeyFile::Authority.path(data_dir), self.authority.certificate_pem(), 0o644)?;
        write_file(&KeyFile::AuthorityKey.path(data_dir), self.authority.key_pem(), 0o600)?;
        write_file(&KeyFile::Certificate.path(data_dir), &self.certificate_pem, 0o644)?;
        write_file(&KeyFile::Key.path(data_dir), &self.key_pem, 0o600)?;
        write_file(&KeyFile::Identity.path(data_dir), &json, 0o600)
    }

    /// The certificate chain that this node presents: its own and the authority's, so that a joining node which knows
    /// only the authority's fingerprint can check it.
    ///
    /// # Errors
    /// [`IdentityError::Damaged`] when a PEM text holds no certificate.
    pub fn chain(&self) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        [&self.certificate_pem, self.authority.certificate_pem()]
            .into_iter()
            .map(|pem| {
                CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| IdentityError::Damaged {
                    path: PathBuf::from("pki/*.pem"),
                    why: error.to_string(),
                })
            })
            .collect()
    }

    /// This node's private key for TLS.
    ///
    /// # Errors
    /// [`IdentityError::Damaged`] when the PEM text holds no key.
    pub fn key(&self) -> Result<PrivateKeyDer<'static>, IdentityError> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
            .map_err(|error| IdentityError::Damaged { path: PathBuf::from("pki/node.key"), why: error.to_string() })
    }
}

/// Writes a small file whole or not at all: temporary name, fsync, rename, fsync of the directory.
///
/// # Errors
/// [`IdentityError::Io`] names the file.
pub fn write_file(path: &Path, text: &str, mode: u32) -> Result<(), IdentityError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let fail = |source| IdentityError::Io { what: "write", path: path.to_owned(), source };
    let write = || -> io::Result<()> {
        std::fs::create_dir_all(parent)?;
        let temporary = path.with_extension("new");
        let mut file =
            std::fs::OpenOptions::new().create(true).write(true).truncate(true).mode(mode).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        std::fs::File::open(parent)?.sync_all()
    };
    write().map_err(fail)
}
