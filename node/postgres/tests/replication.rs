//! Two real servers that replicate through the gates, fail over, part and meet again.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use quorate_core::rejoin::{Return, how_to_return};
use quorate_postgres::gate::{Dial, Gate, Stream};
use quorate_postgres::{Following, Keeper, Session, Settings};
use quorate_types::cluster::Opened;
use quorate_types::{ClusterState, Epoch, EpochRecord, NodeId, SyncSet};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(20);

/// Members on loopback, without TLS: certificates are the daemon's affair.
struct Plain(u16);

#[async_trait]
impl Dial for Plain {
    async fn dial(&self, node: NodeId) -> io::Result<Box<dyn Stream>> {
        Ok(Box::new(TcpStream::connect((address(node), self.0)).await?))
    }
}

fn address(node: NodeId) -> std::net::Ipv4Addr {
    [127, 0, 42, u8::try_from(node.0).unwrap()].into()
}

struct Node {
    id: NodeId,
    keeper: Arc<Keeper>,
    stop: CancellationToken,
}

impl Node {
    async fn open(id: u64, port: u16, directory: &Path) -> Self {
        let id = NodeId(id);
        let folder = directory.join(id.to_string());
        let settings = Settings {
            node: id,
            bin_dir: "/usr/lib/postgresql/15/bin".into(),
            user: "postgres".into(),
            directory: folder.join("postgres"),
            socket_dir: folder.join("run"),
            connections_max: 100,
        };
        std::fs::create_dir_all(&settings.socket_dir).unwrap();
        let keeper = Arc::new(Keeper::open(settings).await.unwrap());
        let stop = CancellationToken::new();
        let socket = keeper.upstream_socket();
        keeper.upstream().serve(&socket, "c".into(), Arc::new(Plain(port)), stop.clone()).unwrap();
        let gate = Arc::new(Gate::new("c".into(), keeper.throne(), keeper.settings()));
        let listener = TcpListener::bind((address(id), port)).await.unwrap();
        let ended = stop.clone();
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = ended.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                let (stream, from) = accepted.unwrap();
                let peer = match from.ip() {
                    std::net::IpAddr::V4(ip) => ip.octets()[3],
                    std::net::IpAddr::V6(_) => unreachable!("loopback is IPv4"),
                };
                // Loopback connections come from 127.0.0.1: the peer is whoever is not this node.
                let peer = if peer == 1 && id == NodeId(1) { NodeId(2) } else { NodeId(3 - id.0) };
                let gate = gate.clone();
                tokio::spawn(async move { gate.serve(stream, peer).await });
            }
        });
        Self { id, keeper, stop }
    }

    async fn sql(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>, quorate_postgres::WireError> {
        let socket = self.keeper.settings().server_sockets().join(".s.PGSQL.5432");
        let mut session = Session::connect(&socket, "quorate", "quorate", false, LIMIT).await?;
        session.query(sql, Duration::from_secs(3)).await
    }

    async fn count(&self) -> String {
        self.sql("SELECT count(*) FROM writes").await.unwrap()[0][0].clone().unwrap()
    }
}

fn record(epoch: u64, holder: NodeId, parent: u64, opened: Opened) -> (Epoch, EpochRecord) {
    let (epoch, parent) = (Epoch(epoch), Epoch(parent));
    (epoch, EpochRecord { epoch, holder, parent, reason: String::new(), opened: Some(opened) })
}

fn following(state: &ClusterState) -> Following {
    let current = state.current().unwrap();
    Following { holder: current.holder, epoch: current.epoch, line: state.line(current.epoch) }
}

async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !check().await {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Two nodes: `a` is the primary of epoch 1, `b` follows it.
struct Pair {
    a: Node,
    b: Node,
    state: ClusterState,
    members: [NodeId; 2],
    /// Everything is in it, until the end of the test.
    directory: tempfile::TempDir,
}

/// What commits wait for when both take part.
fn both() -> SyncSet {
    SyncSet { num_sync: 1, members: [NodeId(1), NodeId(2)].into() }
}

async fn pair() -> Pair {
    let directory = tempfile::Builder::new().prefix("qpg").tempdir_in("/tmp").unwrap();
    let port = TcpListener::bind((address(NodeId(1)), 0)).await.unwrap().local_addr().unwrap().port();
    let a = Node::open(1, port, directory.path()).await;
    let b = Node::open(2, port, directory.path()).await;
    let members = [a.id, b.id];
    let alone = SyncSet { num_sync: 0, members: [a.id].into() };
    let mut state = ClusterState::default();

    a.keeper.init().await.unwrap();
    a.keeper.start(None).await.unwrap();
    let position = a.keeper.stand_still().await.unwrap();
    assert_eq!(position.lineage, Epoch(0));
    let opened = a.keeper.promote(Epoch(1), &alone).await.unwrap();
    assert_eq!(a.keeper.sync_in_effect().await.unwrap(), Some(alone));
    state.epochs.extend([record(1, a.id, 0, opened)]);
    a.keeper.keep_slots(&members).await.unwrap();
    a.keeper.keep_roles(&members).await.unwrap();
    a.sql("CREATE TABLE writes (n int)").await.unwrap();

    b.keeper.copy(&following(&state)).await.unwrap();
    b.keeper.start(Some(&following(&state))).await.unwrap();
    streams(&a, &b).await;
    Pair { a, b, state, members, directory }
}

async fn streams(primary: &Node, standby: &Node) {
    eventually("it streams", async || {
        primary.keeper.replicas().await.unwrap().iter().any(|r| r.node == standby.id && r.streams)
    })
    .await;
}

async fn end(nodes: [&Node; 2]) {
    for node in nodes {
        node.stop.cancel();
        node.keeper.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_set_is_confirmed_when_its_standbys_have_what_was_committed_before() {
    let Pair { a, b, state, directory: _kept, .. } = pair().await;
    b.keeper.stand_still().await.unwrap();
    a.sql("INSERT INTO writes VALUES (1)").await.unwrap();
    assert!(!a.keeper.confirm_sync(&both()).await.unwrap(), "commits do not wait for it yet");
    a.keeper.set_sync(&both()).await.unwrap();
    assert_eq!(a.keeper.sync_in_effect().await.unwrap(), Some(both()));
    assert!(a.sql("INSERT INTO writes VALUES (2)").await.is_err(), "commits wait already");
    assert!(!a.keeper.confirm_sync(&both()).await.unwrap(), "the first write is nowhere else");
    b.keeper.follow(&following(&state)).await.unwrap();
    eventually("b has it", async || a.keeper.confirm_sync(&both()).await.unwrap()).await;
    // Repeated while the walsender runs, it is proven again.
    a.keeper.settle_sync().await.unwrap();
    assert_eq!(a.keeper.sync_in_effect().await.unwrap(), Some(both()));
    a.sql("INSERT INTO writes VALUES (3)").await.unwrap();
    end([&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_during_a_copy_is_in_the_copy() {
    let Pair { a, b, state, directory: _kept, .. } = pair().await;
    a.keeper.set_sync(&both()).await.unwrap();
    let mut acknowledged = 0;
    let from = following(&state);
    let copy = b.keeper.copy(&from);
    tokio::pin!(copy);
    loop {
        tokio::select! {
            biased;
            copied = &mut copy => break copied.unwrap(),
            written = a.sql("INSERT INTO writes VALUES (1)") => acknowledged += u32::from(written.is_ok()),
        }
    }
    assert!(!b.keeper.is_running(), "the old data must not follow meanwhile");
    assert!(a.sql("INSERT INTO writes VALUES (2)").await.is_err(), "nobody has it");
    a.keeper.kill().await;
    b.keeper.start(Some(&following(&state))).await.unwrap();
    b.keeper.stand_still().await.unwrap();
    b.keeper.promote(Epoch(2), &both()).await.unwrap();
    let count: u32 = b.count().await.parse().unwrap();
    assert!(count >= acknowledged, "{count} of {acknowledged}");
    end([&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_that_was_promoted_but_never_opened_keeps_its_fork_point() {
    let Pair { a, b, mut state, members, directory: _kept } = pair().await;
    a.keeper.set_sync(&both()).await.unwrap();
    b.keeper.stand_still().await.unwrap();
    assert!(a.sql("INSERT INTO writes VALUES (1)").await.is_err(), "nobody confirms it");
    a.keeper.kill().await;
    // b promotes and dies before anybody hears of it.
    let unopened = EpochRecord { epoch: Epoch(2), holder: b.id, parent: Epoch(1), reason: String::new(), opened: None };
    state.epochs.insert(Epoch(2), unopened);
    b.keeper.promote(Epoch(2), &both()).await.unwrap();
    b.keeper.kill().await;
    b.keeper.start(None).await.unwrap();
    let position = b.keeper.stand_still().await.unwrap();
    assert_eq!(position.lineage, Epoch(2), "so the node knows that it promoted, and gives the epoch up");
    let opened = b.keeper.promote(Epoch(3), &both()).await.unwrap();
    state.epochs.extend([record(3, b.id, 2, opened)]);
    b.keeper.keep_slots(&members).await.unwrap();
    // The new epoch began behind a's tail; where the one between parted from it nobody knows.
    a.keeper.start(None).await.unwrap();
    let position = a.keeper.stand_still().await.unwrap();
    assert_eq!(how_to_return(&state, Epoch(3), position), Return::Rewind);
    b.keeper.checkpoint().await.unwrap();
    a.keeper.rewind(&following(&state)).await.unwrap();
    a.keeper.start(Some(&following(&state))).await.unwrap();
    streams(&b, &a).await;
    b.sql("INSERT INTO writes VALUES (2)").await.unwrap();
    let row = "SELECT n FROM writes";
    eventually("a shows it", async || a.sql(row).await.is_ok_and(|rows| rows == [[Some("2".to_owned())]])).await;
    end([&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promise_ends_the_wait_for_a_checkpoint() {
    let Pair { a, b, state, directory: _kept, .. } = pair().await;
    // Nobody answers any more, and nobody has said so.
    a.stop.cancel();
    a.keeper.kill().await;
    let mut line = following(&state);
    line.line.insert(line.epoch, Some(quorate_types::TimelineId(99)));
    let keeper = b.keeper.clone();
    let rewind = tokio::spawn(async move { keeper.rewind(&line).await });
    eventually("it is stopped for the rewind", async || !b.keeper.is_running()).await;
    b.keeper.upstream().leave_below(Epoch(2));
    let result = tokio::time::timeout(LIMIT, rewind).await.expect("it must not wait for the primary").unwrap();
    assert!(matches!(result, Err(quorate_postgres::PostgresError::Left)), "{result:?}");
    assert!(b.keeper.has_data(), "nothing was touched");
    end([&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_takes_over_and_the_old_primary_returns_by_rewind() {
    let Pair { a, b, mut state, members, directory: _kept } = pair().await;
    a.keeper.set_sync(&both()).await.unwrap();
    a.sql("INSERT INTO writes SELECT generate_series(1, 100)").await.unwrap();

    // The standby freezes: from here on the primary acknowledges nothing, whatever it does.
    let promised = b.keeper.stand_still().await.unwrap();
    assert_eq!(promised.lineage, Epoch(1));
    assert!(a.sql("INSERT INTO writes VALUES (101)").await.is_err(), "nobody confirms this commit");
    let began = Instant::now();
    a.keeper.kill().await;
    eprintln!("killed in {:?}", began.elapsed());
    assert!(!a.keeper.is_running());
    let began = Instant::now();
    let opened = b.keeper.promote(Epoch(2), &both()).await.unwrap();
    eprintln!("promoted in {:?}", began.elapsed());
    state.epochs.extend([record(2, b.id, 1, opened)]);
    b.keeper.keep_slots(&members).await.unwrap();
    assert_eq!(b.count().await, "100");
    assert!(b.sql("INSERT INTO writes VALUES (102)").await.is_err(), "nobody follows yet");

    // The old primary has a commit that nobody else has.
    a.keeper.start(None).await.unwrap();
    let position = a.keeper.stand_still().await.unwrap();
    assert_eq!(position.lineage, Epoch(1));
    assert_eq!(how_to_return(&state, Epoch(2), position), Return::Rewind);
    b.keeper.checkpoint().await.unwrap();
    a.keeper.rewind(&following(&state)).await.unwrap();
    a.keeper.start(Some(&following(&state))).await.unwrap();
    eventually("a streams", async || b.keeper.replicas().await.unwrap().iter().any(|r| r.node == a.id && r.streams))
        .await;
    b.sql("INSERT INTO writes VALUES (103)").await.unwrap();
    let position = a.keeper.stand_still().await.unwrap();
    assert_eq!(position.lineage, Epoch(2));

    // A planned change: the primary stops in order, and what it had is all on the standby.
    a.keeper.follow(&following(&state)).await.unwrap();
    eventually("a streams again", async || {
        b.keeper.replicas().await.unwrap().iter().any(|r| r.node == a.id && r.streams && r.lag_bytes == 0)
    })
    .await;
    assert!(b.keeper.stop(LIMIT).await);
    let left = a.keeper.stand_still().await.unwrap();
    b.keeper.start(None).await.unwrap();
    let handed = b.keeper.stand_still().await.unwrap();
    assert!(left.lsn >= handed.lsn, "{left:?} {handed:?}");
    let opened = a.keeper.promote(Epoch(3), &both()).await.unwrap();
    state.epochs.extend([record(3, a.id, 2, opened)]);
    a.keeper.keep_slots(&members).await.unwrap();
    assert_eq!(how_to_return(&state, Epoch(3), handed), Return::Follow);
    b.keeper.follow(&following(&state)).await.unwrap();
    a.sql("INSERT INTO writes VALUES (104)").await.unwrap();
    // 1 to 100, 102 (written without an answer, and kept), 103, 104; 101 is gone with the tail that was rewound.
    assert_eq!(a.count().await, "103");
    end([&a, &b]).await;
}
