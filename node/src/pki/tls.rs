//! TLS settings: mutual between nodes, server-only for clients, and the one-time check of a joining node.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use quorate_types::NodeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::{Identity, IdentityError, sha256_hex};

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A key or certificate file is unusable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// rustls refused them.
    #[error("set up TLS with this node's certificate")]
    Rustls(#[from] rustls::Error),
    /// The authority's certificate is unusable.
    #[error("set up the check of client certificates")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// The three settings that a member uses.
#[derive(Clone)]
pub struct Tls {
    /// For the cluster ports: the other side must show a certificate of the cluster.
    pub cluster_server: Arc<ServerConfig>,
    /// For dialling other nodes.
    pub cluster_client: Arc<ClientConfig>,
    /// For REST, files and the API on 8500.
    pub public_server: Arc<ServerConfig>,
}

impl Tls {
    /// # Errors
    /// [`TlsError`] when a file is damaged.
    pub fn new(identity: &Identity) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_slice(identity.authority.certificate_pem().as_bytes())
            .map_err(|error| IdentityError::Damaged { path: "pki/ca.pem".into(), why: error.to_string() })?;
        roots.add(authority)?;
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder(roots.clone()).build()?;
        let mut cluster_server = ServerConfig::builder()
            .with_client_cert_verifier(clients)
            .with_single_cert(identity.chain()?, identity.key()?)?;
        cluster_server.alpn_protocols = vec![b"h2".to_vec()];
        let cluster_client = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(identity.chain()?, identity.key()?)?;
        let mut public_server =
            ServerConfig::builder().with_no_client_auth().with_single_cert(identity.chain()?, identity.key()?)?;
        public_server.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            cluster_server: Arc::new(cluster_server),
            cluster_client: Arc::new(cluster_client),
            public_server: Arc::new(public_server),
        })
    }
}

/// Connects to a node and makes sure that it is that node and no other.
///
/// # Errors
/// Any failure of the connection, the handshake or the check; the caller bounds the time.
pub async fn dial(config: &Arc<ClientConfig>, node: NodeId, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let name = ServerName::IpAddress(address.ip().into());
    let stream = tokio_rustls::TlsConnector::from(config.clone()).connect(name, socket).await?;
    let peer = peer_node(stream.get_ref().1.peer_certificates());
    if peer != Some(node) {
        let found = peer.map_or_else(|| "nobody we know".to_owned(), |peer| peer.to_string());
        return Err(io::Error::other(format!("{address} is {found}, not {node}")));
    }
    Ok(stream)
}

/// The node id in the common name of the certificate that the other side proved to hold.
#[must_use]
pub fn peer_node(certificates: Option<&[CertificateDer<'_>]>) -> Option<NodeId> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificates?.first()?).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    name.parse().ok()
}

/// Accepts a server whose chain holds the authority with a known fingerprint: what a joining node knows from its token.
#[derive(Debug)]
pub struct PinnedAuthority {
    fingerprint: String,
    algorithms: rustls::crypto::WebPkiSupportedAlgorithms,
}

impl PinnedAuthority {
    /// `fingerprint`: SHA-256 of the authority's certificate (DER), hex.
    #[must_use]
    pub fn client(fingerprint: &str) -> ClientConfig {
        let provider = rustls::crypto::ring::default_provider();
        let verifier =
            Self { fingerprint: fingerprint.to_owned(), algorithms: provider.signature_verification_algorithms };
        ClientConfig::builder().dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth()
    }
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let wrong = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let authority = intermediates.iter().find(|der| sha256_hex(der) == self.fingerprint).ok_or(wrong)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &roots,
            &[],
            now,
            self.algorithms.all,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
