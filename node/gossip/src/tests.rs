//! Several nodes in one process, on loopback.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use quorate_types::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Runtime;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::identity::stamp_now;
use crate::{Gossip, GossipKey, GossipSettings, Load, MemberState, PACKET_BYTES_MAX, Pace, StartError};

/// How long anything may take; far above what it takes, for machines under load.
const PATIENCE: Duration = Duration::from_secs(30);

const PACE: Pace = Pace {
    probe: Duration::from_millis(150),
    answer: Duration::from_millis(50),
    suspicion: Duration::from_millis(700),
    news: Duration::from_millis(50),
    rejoin: Duration::from_millis(300),
    sync: Duration::from_millis(500),
};

fn settings(node: u64, seeds: &[SocketAddr]) -> GossipSettings {
    GossipSettings {
        node: NodeId(node),
        name: format!("machine-number-{node}"),
        cluster_id: "the-cluster".into(),
        address: SocketAddr::from(([127, 36, 0, u8::try_from(node).unwrap()], 0)),
        key: GossipKey::new([42; 32]),
        seeds: seeds.to_vec(),
        load: Load { role: format!("role of {node}"), ..Load::default() },
        pace: PACE,
    }
}

async fn start(settings: GossipSettings) -> (Gossip, CancellationToken) {
    let stop = CancellationToken::new();
    let gossip = Gossip::start(settings, stop.clone()).await.unwrap();
    (gossip, stop)
}

/// A node that can die: its runtime is its process.
async fn start_apart(settings: GossipSettings) -> (Gossip, Runtime) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let gossip = runtime.spawn(Gossip::start(settings, CancellationToken::new())).await.unwrap().unwrap();
    (gossip, runtime)
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

fn state(gossip: &Gossip, node: u64) -> Option<MemberState> {
    gossip.member(NodeId(node)).map(|hint| hint.state)
}

/// The states of `node` in their order, until it is in the state `last`.
async fn states_until(gossip: &Gossip, node: u64, last: MemberState) -> Vec<MemberState> {
    let mut changes = gossip.changes();
    let mut states = Vec::new();
    let collect = async {
        loop {
            let now = changes.borrow_and_update().iter().find(|hint| hint.node == NodeId(node)).map(|hint| hint.state);
            if states.last().copied() != now {
                states.extend(now);
            }
            if now == Some(last) {
                break;
            }
            changes.changed().await.unwrap();
        }
    };
    timeout(PATIENCE, collect).await.expect("the state is reached in time");
    states
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_find_each_other_through_one_seed_and_hear_each_others_load() {
    let (first, _stop) = start(settings(1, &[])).await;
    let mut all = vec![first];
    for node in 2..=5 {
        let seeds = [all[0].address()];
        all.push(start(settings(node, &seeds)).await.0);
    }
    for gossip in &all {
        for node in 1..=5 {
            eventually("everybody is alive, and tells its load", || {
                let member = gossip.member(NodeId(node));
                gossip.alive(NodeId(node)) && member.is_some_and(|hint| hint.load.role == format!("role of {node}"))
            })
            .await;
        }
        assert_eq!(gossip.members().len(), 5);
        assert_eq!(gossip.counters().unsealed, 0);
        assert_eq!(gossip.counters().malformed, 0);
    }
    let busy = Load { disk_free_bytes: 12_345, version: "0.2.0".into(), ..Load::default() };
    all[3].set_load(busy.clone()).unwrap();
    for gossip in &all {
        eventually("the new load is known", || gossip.member(NodeId(4)).is_some_and(|hint| hint.load == busy)).await;
    }
    assert!(all[3].set_load(Load { role: "x".repeat(65), ..Load::default() }).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_member_is_suspect_then_down_and_alive_when_it_returns() {
    let (one, _stop) = start(settings(6, &[])).await;
    let (two, _stop) = start(settings(7, &[one.address()])).await;
    let (dying, process) = start_apart(settings(8, &[one.address()])).await;
    for gossip in [&one, &two] {
        eventually("the third is alive", || gossip.alive(NodeId(8))).await;
    }
    let address = dying.address();
    process.shutdown_background();
    let states = states_until(&one, 8, MemberState::Down).await;
    assert!(states.contains(&MemberState::Suspect), "down without a suspicion: {states:?}");
    eventually("the other one agrees", || state(&two, 8) == Some(MemberState::Down)).await;
    assert!(!two.alive(NodeId(8)));

    let (_back, _stop) = start(GossipSettings { address, ..settings(8, &[]) }).await;
    for gossip in [&one, &two] {
        eventually("it is back, found by those that knew it", || gossip.alive(NodeId(8))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_goodbye_is_down_and_new_seeds_are_tried() {
    let (one, _stop) = start(settings(9, &[])).await;
    let (two, stop_two) = start(settings(10, &[])).await;
    assert!(one.member(NodeId(10)).is_none());
    two.set_seeds(vec![one.address()]);
    eventually("they meet", || one.alive(NodeId(10)) && two.alive(NodeId(9))).await;
    stop_two.cancel();
    timeout(PATIENCE, two.stopped()).await.unwrap();
    eventually("it has left", || state(&one, 10) == Some(MemberState::Down)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_declared_down_comes_back_by_itself() {
    let (one, _stop) = start(settings(11, &[])).await;
    let (hung, process) = start_apart(settings(12, &[one.address()])).await;
    eventually("they meet", || one.alive(NodeId(12)) && hung.alive(NodeId(11))).await;
    let (hang, unhang) = std::sync::mpsc::channel::<()>();
    // The runtime's only thread waits, as a stopped process does.
    process.spawn(async move { unhang.recv().ok() });
    eventually("it is declared down", || state(&one, 12) == Some(MemberState::Down)).await;
    drop(hang);
    eventually("it is back", || one.alive(NodeId(12)) && hung.alive(NodeId(11))).await;
    process.shutdown_background();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_went_back_does_not_keep_a_node_out() {
    let (one, _stop) = start(settings(13, &[])).await;
    let early = settings(14, &[one.address()]);
    let tcp = TcpListener::bind(early.address).await.unwrap();
    let address = tcp.local_addr().unwrap();
    let udp = UdpSocket::bind(address).await.unwrap();
    let stop = CancellationToken::new();
    let an_hour_ahead = stamp_now() + 60 * 60 * 1000;
    let before = Gossip::start_on(early.clone(), an_hour_ahead, udp, tcp, stop.clone()).unwrap();
    eventually("they meet", || one.alive(NodeId(14)) && before.alive(NodeId(13))).await;
    stop.cancel();
    before.stopped().await;
    eventually("it has left", || state(&one, 14) == Some(MemberState::Down)).await;
    let load = Load { role: "after the clock went back".into(), ..Load::default() };
    let (after, _stop) = start(GossipSettings { address, load, ..early }).await;
    eventually("they meet again", || one.alive(NodeId(14)) && after.alive(NodeId(13))).await;
    eventually("its load is believed", || {
        one.member(NodeId(14)).is_some_and(|hint| hint.load.role.starts_with("after"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_another_key_or_cluster_never_joins_and_is_counted() {
    let (one, _stop) = start(settings(15, &[])).await;
    let strangers = [
        GossipSettings { key: GossipKey::new([43; 32]), ..settings(16, &[one.address()]) },
        GossipSettings { cluster_id: "another-cluster".into(), ..settings(17, &[one.address()]) },
    ];
    for stranger in strangers {
        let refused = one.counters().unsealed;
        let (stranger, stop) = start(stranger).await;
        // Each round knocks over UDP and TCP.
        eventually("it knocks several times", || one.counters().unsealed >= refused + 6).await;
        assert_eq!(one.members().len(), 1);
        assert_eq!(stranger.members().len(), 1);
        stop.cancel();
        stranger.stopped().await;
    }
    assert_eq!(one.counters().received, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_stay_known_over_tcp_while_udp_is_lost() {
    let mut nodes = Vec::new();
    let mut seeds = Vec::new();
    // The regular rounds come too late to help: only asking suspects over TCP keeps members from being down.
    let late = Duration::from_secs(60);
    let pace = Pace { suspicion: Duration::from_millis(1500), rejoin: late, sync: late, ..PACE };
    for node in [18, 19, 20] {
        let settings = GossipSettings { pace, ..settings(node, &seeds) };
        // UDP listens where nobody sends to: every packet between them is lost.
        let udp = UdpSocket::bind((settings.address.ip(), 0)).await.unwrap();
        let tcp = TcpListener::bind(settings.address).await.unwrap();
        let gossip = Gossip::start_on(settings, stamp_now(), udp, tcp, CancellationToken::new()).unwrap();
        seeds.push(gossip.address());
        nodes.push(gossip);
    }
    for gossip in &nodes {
        for node in [18, 19, 20] {
            eventually("all are listed", || gossip.alive(NodeId(node))).await;
        }
    }
    // Several times as long as an unanswered member needs to be taken for down.
    let end = Instant::now() + 3 * (pace.probe + pace.suspicion);
    let mut suspected = false;
    while Instant::now() < end {
        suspected |= nodes[0].members().iter().any(|hint| hint.state == MemberState::Suspect);
        sleep(Duration::from_millis(5)).await;
    }
    assert!(suspected, "the lost probes went unnoticed, so this proves nothing");
    for gossip in &nodes {
        assert_eq!(gossip.counters().received, 0);
        eventually("all are alive", || [18, 19, 20].iter().all(|node| gossip.alive(NodeId(*node)))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_readable_is_sent_and_packets_are_small() {
    let listener = TcpListener::bind("127.36.0.21:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let udp = UdpSocket::bind(address).await.unwrap();
    let (gossip, _stop) = start(settings(22, &[address])).await;
    let contains = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());

    let mut packet = vec![0; 65_536];
    let (length, from) = timeout(PATIENCE, udp.recv_from(&mut packet)).await.unwrap().unwrap();
    assert_eq!(from, gossip.address());
    assert!(length > 41 && length <= PACKET_BYTES_MAX);
    let (mut stream, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    let frame_bytes = timeout(PATIENCE, stream.read_u32()).await.unwrap().unwrap() as usize;
    let mut frame = vec![0; frame_bytes];
    timeout(PATIENCE, stream.read_exact(&mut frame)).await.unwrap().unwrap();
    for (what, bytes) in [("packet", &packet[..length]), ("frame", &frame[..])] {
        for text in ["machine-number", "role of", "the-cluster"] {
            assert!(!contains(bytes, text), "the {what} shows `{text}`");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversized_and_senseless_messages_are_dropped() {
    let (gossip, _stop) = start(settings(23, &[])).await;
    let mut stream = TcpStream::connect(gossip.address()).await.unwrap();
    stream.write_u32(64 * 1024 + 1).await.unwrap();
    let closed = timeout(PATIENCE, stream.read(&mut [0; 1])).await.expect("the connection is closed at once");
    assert!(matches!(closed, Ok(0) | Err(_)));

    let udp = UdpSocket::bind("127.36.0.24:0").await.unwrap();
    for bytes in [0, 1, 41, PACKET_BYTES_MAX, PACKET_BYTES_MAX + 1, 9000] {
        udp.send_to(&vec![1; bytes], gossip.address()).await.unwrap();
    }
    eventually("each is counted", || gossip.counters().unsealed == 6).await;
    assert_eq!(gossip.counters().received, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_are_closed_and_do_not_keep_members_out() {
    let (gossip, _stop) = start(settings(26, &[])).await;
    let mut idle = Vec::new();
    for _ in 0..17 {
        idle.push(TcpStream::connect(gossip.address()).await.unwrap());
    }
    let (other, _stop) = start(settings(27, &[gossip.address()])).await;
    eventually("they meet", || gossip.alive(NodeId(27)) && other.alive(NodeId(26))).await;
    for stream in &mut idle {
        let closed = timeout(PATIENCE, stream.read(&mut [0; 1])).await.expect("an idle connection is closed");
        assert!(matches!(closed, Ok(0) | Err(_)));
    }
}

#[tokio::test]
async fn unsound_settings_are_refused() {
    let stop = CancellationToken::new();
    let name = GossipSettings { name: "x".repeat(65), ..settings(25, &[]) };
    assert!(matches!(Gossip::start(name, stop.clone()).await, Err(StartError::Name(65))));
    let pace = GossipSettings { pace: Pace { answer: PACE.probe, ..PACE }, ..settings(25, &[]) };
    assert!(matches!(Gossip::start(pace, stop.clone()).await, Err(StartError::Pace)));
    let (taken, _stop) = start(settings(25, &[])).await;
    let again = GossipSettings { address: taken.address(), ..settings(25, &[]) };
    assert!(matches!(Gossip::start(again, stop).await, Err(StartError::Bind { protocol: "TCP", .. })));
}
