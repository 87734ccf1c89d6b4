//! The client of RabbitMQ's management interface.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, StatusCode};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::BrokerError;
use crate::settings::BrokerSettings;

/// One request, from connecting to the last byte of the answer. Creating a virtual host is the slowest.
const REQUEST_LIMIT: Duration = Duration::from_secs(15);
/// Bytes of one answer; a user takes about 200.
const ANSWER_LIMIT: usize = 16 * 1024 * 1024;
/// How much of a refusal is shown.
const REFUSAL_CHARS: usize = 300;

/// Talks to one broker as its administrator. Not `Debug`: it holds the password.
pub(crate) struct Management {
    client: Client,
    base: String,
    user: String,
    password: String,
}

impl Management {
    pub(crate) fn new(settings: &BrokerSettings) -> Result<Self, BrokerError> {
        let path = &settings.ca_pem_path;
        let tls = tls(settings).map_err(|source| BrokerError::Authority { path: path.clone(), source })?;
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .timeout(REQUEST_LIMIT)
            .no_proxy()
            .build()
            .map_err(|source| BrokerError::Authority { path: path.clone(), source: source.into() })?;
        Ok(Self {
            client,
            base: format!("https://{}/api", settings.management_address()),
            user: settings.admin_user.clone(),
            password: settings.admin_password.clone(),
        })
    }

    /// Whether AMQP is listened for on this port.
    pub(crate) async fn serves(&self, port: u16) -> Result<(), BrokerError> {
        let what = "look for the AMQP listener";
        let port = port.to_string();
        self.send(what, self.request(Method::GET, &["health", "checks", "port-listener", &port])).await.map(drop)
    }

    /// The items of a list.
    pub(crate) async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, BrokerError> {
        let what = format!("list {path}");
        let body = self.send(&what, self.request(Method::GET, &[path])).await?;
        serde_json::from_slice(&body).map_err(|error| BrokerError::Answer { what, answer: error.to_string() })
    }

    /// Creates or replaces.
    pub(crate) async fn put(&self, path: &[&str], body: &Value) -> Result<(), BrokerError> {
        let what = format!("put {}", path.join(" "));
        self.send(&what, self.request(Method::PUT, path).json(body)).await.map(drop)
    }

    /// Deletes; what is not there is deleted already.
    pub(crate) async fn delete(&self, path: &[&str]) -> Result<(), BrokerError> {
        let what = format!("delete {}", path.join(" "));
        match self.send(&what, self.request(Method::DELETE, path)).await {
            Err(BrokerError::Answer { answer, .. }) if answer.starts_with(StatusCode::NOT_FOUND.as_str()) => Ok(()),
            other => other.map(drop),
        }
    }

    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let path: String = path.iter().map(|part| format!("/{}", encoded(part))).collect();
        self.client.request(method, format!("{}{path}", self.base)).basic_auth(&self.user, Some(&self.password))
    }

    async fn send(&self, what: &str, request: RequestBuilder) -> Result<Vec<u8>, BrokerError> {
        let ask = |source| BrokerError::Ask { what: what.to_owned(), source };
        let mut response = request.send().await.map_err(ask)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(ask)? {
            if body.len() + chunk.len() > ANSWER_LIMIT {
                let answer = format!("more than {ANSWER_LIMIT} bytes");
                return Err(BrokerError::Answer { what: what.to_owned(), answer });
            }
            body.extend_from_slice(&chunk);
        }
        if !response.status().is_success() {
            let said: String = String::from_utf8_lossy(&body).chars().take(REFUSAL_CHARS).collect();
            return Err(BrokerError::Answer { what: what.to_owned(), answer: format!("{} {said}", response.status()) });
        }
        Ok(body)
    }
}

/// One segment of a path: a name may hold slashes, as the virtual host `/` does.
fn encoded(segment: &str) -> String {
    let mut text = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric()
            || b"-_~".contains(&byte)
            || (byte == b'.' && !segment.trim_matches('.').is_empty())
        {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

type TlsError = Box<dyn std::error::Error + Send + Sync>;

fn tls(settings: &BrokerSettings) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(&settings.ca_pem_path)? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(ring::default_provider());
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
    let verifier = NodeVerifier { inner, address: settings.node_address };
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

/// Checks the certificate for the node's address, also when the management interface is on 127.0.0.1, for which no
/// node's certificate is valid.
struct NodeVerifier {
    inner: Arc<WebPkiServerVerifier>,
    address: IpAddr,
}

impl fmt::Debug for NodeVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeVerifier").field("address", &self.address).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _reached_as: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let node = ServerName::IpAddress(self.address.into());
        self.inner.verify_server_cert(end_entity, intermediates, &node, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::encoded;

    #[test]
    fn names_stay_one_segment() {
        assert_eq!(encoded("/"), "%2F");
        assert_eq!(encoded("rabbitmq_vhost_a b/ü"), "rabbitmq_vhost_a%20b%2F%C3%BC");
        // A lone `..` would be taken for the parent.
        assert_eq!(encoded(".."), "%2E%2E");
        assert_eq!(encoded("a.b"), "a.b");
    }
}
