//! The certificate authority: made once by `cluster init`, carried by every member.

use std::net::IpAddr;

use quorate_types::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};

/// How long the authority's own certificate holds.
const AUTHORITY_DAYS: i64 = 3650;
/// How long a node's certificate holds.
const NODE_DAYS: i64 = 825;
/// Certificates are valid from a little before now, for nodes whose clocks are behind.
const CLOCK_TOLERANCE: Duration = Duration::hours(1);

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The request, a key or a certificate is malformed.
    #[error("make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// The PEM text holds no certificate or request.
    #[error("read a certificate or signing request")]
    Parse,
}

/// The cluster's certificate authority. Its `Debug` form shows no key.
pub struct Authority {
    certificate_pem: String,
    key_pem: String,
}

/// Under which names a node is reached.
#[derive(Debug, Clone)]
pub struct Names {
    /// Its id, which becomes the common name.
    pub id: NodeId,
    /// Its host name.
    pub name: String,
    /// Its own address, and the cluster's where there is one.
    pub addresses: Vec<IpAddr>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes a new authority for the cluster of this id.
    ///
    /// # Errors
    /// [`AuthorityError::Certificate`] when the system gives no randomness.
    pub fn create(cluster_id: &str) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&format!("Quorate cluster {cluster_id}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        validity(&mut params, AUTHORITY_DAYS);
        let certificate = params.self_signed(&key)?;
        Ok(Self { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// Takes over an authority from its two PEM texts.
    #[must_use]
    pub fn from_pem(certificate_pem: String, key_pem: String) -> Self {
        Self { certificate_pem, key_pem }
    }

    /// The certificate that clients trust.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The secret; only for storing and for handing to a joining node.
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Signs a node's request. Only the request's public key is taken from it, the names are the caller's.
    ///
    /// # Errors
    /// [`AuthorityError`] when the request is malformed.
    pub fn sign(&self, request_pem: &str, names: &Names) -> Result<String, AuthorityError> {
        let request = CertificateSigningRequestParams::from_pem(request_pem)?;
        let issuer = Issuer::from_ca_cert_pem(&self.certificate_pem, KeyPair::from_pem(&self.key_pem)?)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&names.id.to_string());
        params.subject_alt_names = names.addresses.iter().map(|address| SanType::IpAddress(*address)).collect();
        params.subject_alt_names.push(SanType::DnsName(names.name.as_str().try_into()?));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        validity(&mut params, NODE_DAYS);
        Ok(params.signed_by(&request.public_key, &issuer)?.pem())
    }
}

/// A key and the request to sign it; the key never leaves the node.
pub fn signing_request() -> Result<(KeyPair, String), AuthorityError> {
    let key = KeyPair::generate()?;
    let request = CertificateParams::default().serialize_request(&key)?.pem()?;
    Ok((key, request))
}

/// SHA-256 of a certificate's public key (SubjectPublicKeyInfo), hex: how members are told apart from former ones.
///
/// # Errors
/// [`AuthorityError::Parse`] when the bytes are no certificate.
pub fn public_key_sha256(certificate_der: &[u8]) -> Result<String, AuthorityError> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate_der).map_err(|_| AuthorityError::Parse)?;
    Ok(sha256_hex(certificate.public_key().raw))
}

/// The same of a signing request's public key.
///
/// # Errors
/// [`AuthorityError::Parse`] when the text is no signing request.
pub fn request_key_sha256(request_pem: &str) -> Result<String, AuthorityError> {
    use x509_parser::prelude::FromDer;
    let (_, pem) = x509_parser::pem::parse_x509_pem(request_pem.as_bytes()).map_err(|_| AuthorityError::Parse)?;
    let (_, request) = x509_parser::certification_request::X509CertificationRequest::from_der(&pem.contents)
        .map_err(|_| AuthorityError::Parse)?;
    Ok(sha256_hex(request.certification_request_info.subject_pki.raw))
}

/// SHA-256 in hex.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn validity(params: &mut CertificateParams, days: i64) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - CLOCK_TOLERANCE;
    params.not_after = now + Duration::days(days);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_and_its_certificate_have_the_same_key() {
        let authority = Authority::create("c1").unwrap();
        let (_, request) = signing_request().unwrap();
        let names = Names { id: NodeId(3), name: "mgr-3".into(), addresses: vec!["10.0.0.3".parse().unwrap()] };
        let certificate = authority.sign(&request, &names).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()).unwrap();
        assert_eq!(public_key_sha256(&pem.contents).unwrap(), request_key_sha256(&request).unwrap());
    }

    #[test]
    fn garbage_is_no_request() {
        let authority = Authority::create("c1").unwrap();
        let names = Names { id: NodeId(3), name: "mgr-3".into(), addresses: vec![] };
        assert!(authority.sign("-----BEGIN NONSENSE-----", &names).is_err());
        assert!(request_key_sha256("nonsense").is_err());
    }
}
