//! Settings and certificates for a broker on a loopback address.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_broker::BrokerSettings;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};

pub const READY: Duration = Duration::from_secs(180);
pub const PASSWORD: &str = "the-secret-of-the-administrator";

/// An authority and a certificate for this address, in files.
pub struct Certificates {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

pub fn certificates(folder: &Path, address: IpAddr) -> Certificates {
    let ca_key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // Named unlike the certificate below, which else looks signed by itself.
    params.distinguished_name.push(DnType::CommonName, format!("authority of {}", folder.display()));
    let ca = params.self_signed(&ca_key).expect("an authority").pem();
    let issuer = Issuer::new(params, ca_key);
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::IpAddress(address)];
    let cert = params.signed_by(&key, &issuer).expect("a certificate").pem();
    let files = Certificates { ca: folder.join("ca.pem"), cert: folder.join("cert.pem"), key: folder.join("key.pem") };
    fs::write(&files.ca, ca).expect("write");
    fs::write(&files.cert, cert).expect("write");
    fs::write(&files.key, key.serialize_pem()).expect("write");
    files
}

/// A folder that the broker's account can reach, empty, with a fixed name: what a killed run leaves is found again.
pub fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("quorate-test-{name}"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("make a folder");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("open the folder");
    folder
}

pub fn settings(name: &str, address: &str) -> BrokerSettings {
    let folder = folder(name);
    let node_address = address.parse().expect("an address");
    let files = certificates(&folder, node_address);
    BrokerSettings {
        program: "/usr/lib/rabbitmq/bin/rabbitmq-server".into(),
        user: Some("rabbitmq".into()),
        node_dir: folder.join("broker"),
        node_address,
        amqps_port: 5671,
        management_port: 15671,
        distribution_port: 25672,
        ca_pem_path: files.ca,
        cert_pem_path: files.cert,
        key_pem_path: files.key,
        admin_user: "quorate".into(),
        admin_password: PASSWORD.into(),
    }
}
