//! Who has no certificate of the cluster gets nowhere on a cluster port, and a token admits once and not for ever.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use quorate_cluster_tests::bed::Bed;
use quorate_cluster_tests::cluster::{Cluster, Timing};
use rcgen::{CertificateParams, DnType, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

const PATIENCE: Duration = Duration::from_secs(5);
/// HTTP/2's first bytes, which gRPC would answer with its settings.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// PostgreSQL's question whether a gate speaks TLS, and a plain startup packet's first bytes.
const POSTGRES: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 47];

fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect_timeout(&address, PATIENCE).expect("the port is open");
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// The first byte of a TLS alert: a refusal.
const ALERT: u8 = 21;

/// Whether anything but a refusal came back.
fn is_answered(mut stream: impl Read + Write, words: &[u8]) -> bool {
    if stream.write_all(words).and_then(|()| stream.flush()).is_err() {
        return false;
    }
    let mut byte = [0];
    matches!(stream.read(&mut byte), Ok(1)) && byte != [ALERT]
}

/// A TLS client that trusts the cluster, with or without a certificate of its own.
fn client(ca_pem: &[u8], own: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem).unwrap()).unwrap();
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let mut config = match own {
        Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// A certificate for n1, as a node of another cluster would have.
fn of_another_cluster() -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let authority_key = KeyPair::generate().unwrap();
    let authority = CertificateParams::new(Vec::new()).unwrap();
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["n1".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "n1");
    let certificate = params.signed_by(&key, &issuer).unwrap();
    (certificate.der().clone(), PrivateKeyDer::Pkcs8(key.serialize_der().into()))
}

fn over_tls(address: SocketAddr, config: Arc<ClientConfig>) -> StreamOwned<ClientConnection, TcpStream> {
    let connection = ClientConnection::new(config, ServerName::from(address.ip())).unwrap();
    StreamOwned::new(connection, connect(address))
}

/// A token that lives this long, from the operator's socket.
fn token(cluster: &Cluster, seconds: u64) -> String {
    let path = cluster.bed().disk(1).unwrap().join("data/run/admin.sock");
    let mut socket = UnixStream::connect(path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let body = format!("{{\"seconds\":{seconds}}}");
    let request = format!(
        "POST /tokens HTTP/1.1\r\nhost: q\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    let made: serde_json::Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("no token: {answer}"));
    made["token"].as_str().unwrap().to_owned()
}

fn join(cluster: &Cluster, token: &str) -> anyhow::Result<String> {
    let file = cluster.bed().disk(2).unwrap().join("token");
    std::fs::write(&file, token).unwrap();
    let (member, file) = (cluster.bed().address(1).to_string(), file.display().to_string());
    cluster.quorate(2, &["cluster", "join", "--address", &member, "--token-file", &file])
}

#[test]
fn strangers_and_used_tokens_are_refused() {
    assert!(Bed::is_possible(), "this test needs root and network namespaces: run `make test` as root");
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut cluster = Cluster::start_one_of(11, 2, Timing::Patient).unwrap();
    let access = cluster.access().unwrap();
    let (host, network) = (cluster.bed().address(1), cluster.bed().client_network().unwrap());
    let ca_pem = access.ca_pem;
    std::thread::spawn(move || {
        network.enter().unwrap();
        for port in [8300, 15432, 22000] {
            let address = SocketAddr::new(host.into(), port);
            for words in [HTTP2, POSTGRES] {
                let plain = is_answered(connect(address), words);
                let bare = is_answered(over_tls(address, client(&ca_pem, None)), words);
                let other = is_answered(over_tls(address, client(&ca_pem, Some(of_another_cluster()))), words);
                assert!(!plain, "{port} answers without TLS");
                assert!(!bare, "{port} answers without a certificate");
                assert!(!other, "{port} answers a node of another cluster");
            }
        }
        // The same question with nothing to hide gets an answer, so silence above means refusal.
        let api = SocketAddr::new(host.into(), 8500);
        let mut config = ClientConfig::clone(&client(&ca_pem, None));
        config.alpn_protocols.clear();
        let request = b"GET /v1/status/leader HTTP/1.1\r\nhost: q\r\n\r\n";
        assert!(is_answered(over_tls(api, Arc::new(config)), request));
    })
    .join()
    .unwrap();

    let short = token(&cluster, 1);
    std::thread::sleep(Duration::from_secs(3));
    let refused = join(&cluster, &short).unwrap_err().to_string();
    assert!(refused.contains("expired"), "an expired token: {refused}");
    let good = token(&cluster, 60);
    let damaged = good.replace(|c: char| c.is_ascii_digit(), "0");
    assert!(join(&cluster, &damaged).is_err(), "a damaged token must not admit");
    assert!(join(&cluster, "nonsense").unwrap_err().to_string().contains("token"));
    join(&cluster, &good).unwrap();
    cluster.wipe_identity(2).unwrap();
    let refused = join(&cluster, &good).unwrap_err().to_string();
    assert!(refused.contains("token"), "a used token: {refused}");
    cluster.power_off(2).unwrap();
}
