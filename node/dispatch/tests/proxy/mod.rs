//! A TCP proxy that can break a connection at a chosen moment.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub struct Proxy {
    pub address: SocketAddr,
    /// Pieces from the broker that still pass; the one after them breaks the connection.
    left: Arc<AtomicI64>,
}

impl Proxy {
    pub async fn start(ip: IpAddr, broker: SocketAddr) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.expect("listen");
        let address = listener.local_addr().expect("an address");
        let left = Arc::new(AtomicI64::new(i64::MAX));
        let counter = Arc::clone(&left);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let broker = TcpStream::connect(broker).await.expect("the broker");
                tokio::spawn(pass(client, broker, Arc::clone(&counter)));
            }
        });
        Self { address, left }
    }

    pub fn cut_after(&self, pieces: i64) {
        self.left.store(pieces, Ordering::SeqCst);
    }

    pub fn mend(&self) {
        self.left.store(i64::MAX, Ordering::SeqCst);
    }
}

async fn pass(mut client: TcpStream, mut broker: TcpStream, left: Arc<AtomicI64>) {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_broker, mut to_broker) = broker.split();
    let up = tokio::io::copy(&mut from_client, &mut to_broker);
    let down = async {
        let mut piece = vec![0; 64 * 1024];
        while let Ok(size @ 1..) = from_broker.read(&mut piece).await {
            if left.fetch_sub(1, Ordering::SeqCst) <= 0 || to_client.write_all(&piece[..size]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! { _ = up => {}, () = down => {} }
}
