//! One connection to a broker.

use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use amq_protocol_tcp::{AsyncTcpStream, RustlsConnector};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Connection, ConnectionProperties};
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// From nothing to an open connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Seconds; a broker silent for twice this is gone.
const HEARTBEAT: u16 = 10;

/// A virtual host of a broker, and as whom to go there. Its `Debug` form shows no password.
#[derive(Clone)]
pub struct AmqpTarget {
    /// The broker's certificate must be valid for this IP address.
    pub address: SocketAddr,
    /// The only authorities that are trusted, as PEM.
    pub ca_pem: String,
    /// The user.
    pub user: String,
    /// The user's password.
    pub password: String,
    /// The virtual host, such as `/`.
    pub vhost: String,
}

impl fmt::Debug for AmqpTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpTarget")
            .field("address", &self.address)
            .field("user", &self.user)
            .field("vhost", &self.vhost)
            .finish_non_exhaustive()
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The authority is no usable PEM text.
    #[error("use the certificate authority for AMQP")]
    Authority(#[source] Box<dyn Error + Send + Sync>),
    /// Not reachable, not the right certificate, or user, password or virtual host refused.
    #[error("connect to the broker at {address}")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// It did not answer in time.
    #[error("the broker at {address} did not answer within {limit:?}")]
    TooSlow {
        /// Where.
        address: SocketAddr,
        /// The limit.
        limit: Duration,
    },
}

impl AmqpTarget {
    /// Connects. `purpose` is shown in the broker's list of connections.
    pub(crate) async fn connect(&self, purpose: &str) -> Result<Connection, LinkError> {
        let tls = Arc::new(self.tls().map_err(LinkError::Authority)?);
        let address = self.address;
        let connecting = Connection::connector(
            self.uri(),
            lapin::runtime::default_runtime().map_err(|error| self.refused(error))?,
            // Called by name, so that a build without TLS does not compile: lapin's own way would fall back to TCP.
            async move |_, runtime| {
                let secured = async {
                    let plain = AsyncTcpStream::connect(&runtime, address).await?;
                    let tls = RustlsConnector::from(Arc::clone(&tls));
                    plain.into_rustls(&tls, &address.ip().to_string()).await
                };
                // Bounded here too: this runs on a thread of its own, which the limit below does not end.
                match tokio::time::timeout(CONNECT_LIMIT, secured).await {
                    Ok(stream) => Ok(stream?),
                    Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
                }
            },
            ConnectionProperties::default().with_connection_name(purpose.into()),
        );
        match tokio::time::timeout(CONNECT_LIMIT, connecting).await {
            Ok(connected) => connected.map_err(|error| self.refused(error)),
            Err(_) => Err(LinkError::TooSlow { address, limit: CONNECT_LIMIT }),
        }
    }

    pub(crate) fn refused(&self, error: lapin::Error) -> LinkError {
        LinkError::Connect { address: self.address, source: error.into() }
    }

    fn uri(&self) -> AMQPUri {
        AMQPUri {
            scheme: AMQPScheme::AMQPS,
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo { username: self.user.clone(), password: self.password.clone() },
                host: self.address.ip().to_string(),
                port: self.address.port(),
            },
            vhost: self.vhost.clone(),
            query: AMQPQueryString { heartbeat: Some(HEARTBEAT), ..Default::default() },
        }
    }

    fn tls(&self) -> Result<ClientConfig, Box<dyn Error + Send + Sync>> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(self.ca_pem.as_bytes()) {
            roots.add(certificate?)?;
        }
        if roots.is_empty() {
            return Err("there is no certificate in it".into());
        }
        Ok(ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth())
    }
}
