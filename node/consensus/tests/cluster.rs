//! Three members over real sockets and real stores.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quorate_consensus::{Command, Consensus, Dial, KvCommand, OpenError, Reply, Settings};
use quorate_types::{Member, NodeId};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};

struct Plain(u16);

impl Dial for Plain {
    fn channel(&self, _: NodeId, address: IpAddr) -> Channel {
        Endpoint::from_shared(format!("http://{}", SocketAddr::new(address, self.0)))
            .unwrap()
            .connect_timeout(Duration::from_millis(200))
            .connect_lazy()
    }
}

struct Running {
    consensus: Consensus,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn start(id: u64, port: u16, directory: &Path) -> Self {
        Self::start_with(id, port, directory, Duration::from_millis(400)).await
    }

    async fn start_with(id: u64, port: u16, directory: &Path, patience: Duration) -> Self {
        let settings = Settings {
            node: NodeId(id),
            directory: directory.join(id.to_string()),
            heartbeat: Duration::from_millis(50),
            election_min: patience,
            election_max: patience * 7 / 4,
        };
        let consensus = Consensus::open(settings, Arc::new(Plain(port))).await.unwrap();
        let listener = TcpListener::bind(SocketAddr::new(address(id), port)).await.unwrap();
        let stop = CancellationToken::new();
        let routes = Server::builder().add_service(consensus.service());
        let ended = stop.clone().cancelled_owned();
        let server = tokio::spawn(async move {
            // The server waits for open streams when it is asked nicely; a dead node does not.
            tokio::select! {
                _ = routes.serve_with_incoming(TcpIncoming::from(listener)) => {}
                () = ended => {}
            }
        });
        Self { consensus, stop, server }
    }

    async fn end(self) {
        self.stop.cancel();
        self.server.await.unwrap();
        self.consensus.shutdown().await;
    }
}

fn address(id: u64) -> IpAddr {
    IpAddr::from([127, 0, 41, u8::try_from(id).unwrap()])
}

fn member(id: u64) -> Member {
    let name = format!("node{id}");
    Member { id: NodeId(id), name, address: address(id), public_key_sha256: String::new(), voter: true }
}

async fn free_port() -> u16 {
    TcpListener::bind((address(1), 0)).await.unwrap().local_addr().unwrap().port()
}

async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !check().await {
        assert!(tokio::time::Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn admit(founder: &Consensus, id: u64) {
    let token = format!("t{id}");
    let add = Command::AddJoinToken { id: token.clone(), secret_sha256: "s".into(), expires_at: 10 };
    founder.propose(add).await.unwrap();
    let command = Command::Admit {
        token,
        secret_sha256: "s".into(),
        now: 1,
        name: format!("node{id}"),
        address: address(id),
        public_key_sha256: String::new(),
    };
    assert_eq!(founder.propose(command).await.unwrap(), Reply::Admitted(NodeId(id)));
    founder.propose(Command::SetVoter { id: NodeId(id), voter: true }).await.unwrap();
}

async fn reconcile(consensus: &Consensus) {
    // Learner, then voter, then nothing left to do.
    let mut quiet = 0;
    while quiet < 3 {
        match consensus.reconcile_membership().await {
            Ok(Some(_)) => quiet = 0,
            _ => quiet += 1,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn put(key: &str, value: &str) -> Command {
    Command::Kv(KvCommand::Put { key: key.into(), value: value.into(), flags: 0, cas: None })
}

fn value(consensus: &Consensus, key: &str) -> Option<Vec<u8>> {
    consensus.read(|machine| machine.kv.get(key).map(|entry| entry.value.clone()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_join_agree_and_survive_the_leader() {
    let directory = tempfile::tempdir().unwrap();
    let port = free_port().await;
    let first = Running::start(1, port, directory.path()).await;
    first.consensus.found("c".into(), member(1)).await.unwrap();
    first.consensus.found("c".into(), member(1)).await.expect("founding twice is harmless");
    let second = Running::start(2, port, directory.path()).await;
    let third = Running::start(3, port, directory.path()).await;
    admit(&first.consensus, 2).await;
    admit(&first.consensus, 3).await;
    reconcile(&first.consensus).await;

    second.consensus.propose(put("a", "1")).await.expect("a follower hands it to the leader");
    third.consensus.read_barrier().await.unwrap();
    assert_eq!(value(&third.consensus, "a").unwrap(), b"1", "a read after the barrier sees the write");

    assert_eq!(second.consensus.known_leader(), Some(NodeId(1)));
    assert_eq!(second.consensus.voters(), [1, 2, 3].map(|id| (NodeId(id), address(id))));
    assert!(second.consensus.leader_silent_for() < Duration::from_secs(2), "heartbeats count");

    let lost = tokio::time::Instant::now();
    first.end().await;
    second.consensus.propose(put("b", "2")).await.or(second.consensus.propose(put("b", "2")).await).unwrap();
    eprintln!("agreed again after {:?}", lost.elapsed());
    third.consensus.read_barrier().await.unwrap();
    assert_eq!(value(&third.consensus, "b").unwrap(), b"2");

    let first = Running::start(1, port, directory.path()).await;
    eventually("the old leader catches up", async || value(&first.consensus, "b").is_some()).await;
    assert_eq!(first.consensus.cluster().borrow().members.len(), 3);
    eventually("everybody knows the new leader", async || first.consensus.known_leader().is_some()).await;
    // The leader goes on alone, which Raft itself does not tell.
    let leader = first.consensus.known_leader().unwrap();
    let mut followers = vec![first, second, third];
    let at = followers.iter().position(|running| running.consensus.node() == leader).unwrap();
    let alone = followers.swap_remove(at);
    for follower in followers {
        follower.end().await;
    }
    eventually("it notices", async || alone.consensus.known_leader().is_none()).await;
    assert!(alone.consensus.leader_silent_for() >= Duration::from_millis(700));
    let answer = tokio::time::timeout(Duration::from_secs(8), alone.consensus.propose(put("c", "3"))).await.unwrap();
    assert!(answer.is_err(), "one of three agrees on nothing");
    alone.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voters_that_know_of_their_leaders_end_need_no_patience() {
    let directory = tempfile::tempdir().unwrap();
    let port = free_port().await;
    // Longer than the test waits for anything.
    let patience = Duration::from_secs(60);
    let first = Running::start_with(1, port, directory.path(), patience).await;
    first.consensus.found("c".into(), member(1)).await.unwrap();
    let second = Running::start_with(2, port, directory.path(), patience).await;
    let third = Running::start_with(3, port, directory.path(), patience).await;
    admit(&first.consensus, 2).await;
    admit(&first.consensus, 3).await;
    reconcile(&first.consensus).await;
    second.consensus.read_barrier().await.unwrap();
    third.consensus.read_barrier().await.unwrap();
    first.end().await;
    let new_leader = || {
        let leader = second.consensus.leadership().borrow().leader;
        leader.is_some_and(|leader| leader != NodeId(1))
    };
    eventually("there is a new leader", async || {
        for voter in [&second.consensus, &third.consensus] {
            if !new_leader() {
                voter.elect().await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        new_leader()
    })
    .await;
    second.consensus.propose(put("a", "1")).await.unwrap();
    second.end().await;
    third.end().await;
}

#[tokio::test]
async fn a_node_that_lost_its_log_does_not_vote_again() {
    let directory = tempfile::tempdir().unwrap();
    let port = free_port().await;
    let first = Running::start(1, port, directory.path()).await;
    first.consensus.found("c".into(), member(1)).await.unwrap();
    first.end().await;
    std::fs::remove_file(directory.path().join("1/raft.redb")).unwrap();
    let settings = Settings {
        node: NodeId(1),
        directory: directory.path().join("1"),
        heartbeat: Duration::from_millis(50),
        election_min: Duration::from_millis(400),
        election_max: Duration::from_millis(700),
    };
    assert!(matches!(Consensus::open(settings, Arc::new(Plain(port))).await, Err(OpenError::Lost { .. })));
}
