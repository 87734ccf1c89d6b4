//! The cluster address on real interfaces: hosts are network namespaces on one bridge. Needs root. What
//! a neighbour believes is read from its neighbour cache.

mod bed;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use quorate_network::{HoldError, LinkError, ProbeError, ReleaseError, SettingsError, Vip, VipKind, VipSettings};

use bed::{Bed, eventually};

const PATIENCE: Duration = Duration::from_millis(500);

fn vip(address: &str) -> Arc<Vip> {
    Arc::new(Vip::new(VipSettings::new(address.parse().unwrap())).unwrap())
}

fn hold(vip: &Arc<Vip>) -> impl Future<Output = Result<(), HoldError>> + use<> {
    let vip = Arc::clone(vip);
    async move { vip.hold().await }
}

fn release(vip: &Arc<Vip>) -> impl Future<Output = Result<bool, ReleaseError>> + use<> {
    let vip = Arc::clone(vip);
    async move { vip.release().await }
}

fn probe(vip: &Arc<Vip>) -> impl Future<Output = Result<(), ProbeError>> + use<> {
    let vip = Arc::clone(vip);
    async move { vip.probe(PATIENCE).await }
}

fn held(vip: &Arc<Vip>) -> impl Future<Output = Result<bool, LinkError>> + use<> {
    let vip = Arc::clone(vip);
    async move { vip.held() }
}

/// The address moves from one host to another, and a third host follows without asking.
async fn moves(bed_name: &str, subnet: fn(usize) -> String, address: &str) {
    let Some(bed) = Bed::new(bed_name, 3, subnet) else { return };
    let [one, two, client] = bed.hosts();
    let (first, second) = (vip(address), vip(address));

    two.run(probe(&second)).await.expect("nobody has it");
    one.run(hold(&first)).await.unwrap();
    assert!(one.run(held(&first)).await.unwrap());
    assert!(!two.run(held(&second)).await.unwrap());

    // The client talks to it, so that its neighbour cache has the first holder.
    client.touch(address).await;
    eventually("the client knows the first holder", || client.neighbour(address).as_deref() == Some(one.mac())).await;
    let found = two.run(probe(&second)).await;
    match found {
        Err(ProbeError::Conflict { mac, .. }) => assert_eq!(mac.to_string(), one.mac()),
        other => panic!("the holder did not answer: {other:?}"),
    }
    one.run(probe(&first)).await.expect("not by itself");

    assert!(one.run(release(&first)).await.unwrap());
    assert!(!one.run(held(&first)).await.unwrap());
    assert_eq!(client.neighbour(address).as_deref(), Some(one.mac()), "the client still believes the first");
    two.run(hold(&second)).await.unwrap();
    eventually("the client was told", || client.neighbour(address).as_deref() == Some(two.mac())).await;
}

#[tokio::test]
async fn an_ipv4_address_moves_and_neighbours_are_told() {
    moves("m4", |host| format!("10.36.1.{host}/24"), "10.36.1.100").await;
}

#[tokio::test]
async fn an_ipv6_address_moves_and_neighbours_are_told() {
    moves("m6", |host| format!("fd36::{host}/64"), "fd36::100").await;
}

#[tokio::test]
async fn holding_and_releasing_may_be_repeated() {
    let Some(bed) = Bed::new("re", 1, |host| format!("10.36.2.{host}/24")) else { return };
    let [host] = bed.hosts();
    let held = vip("10.36.2.100");
    let done = host.run(async move {
        assert!(!held.release().await.unwrap());
        for _ in 0..3 {
            held.hold().await.unwrap();
            assert!(held.held().unwrap());
        }
        assert!(held.release().await.unwrap());
        assert!(!held.held().unwrap());
        assert!(!held.release().await.unwrap());
        // As after a crash: another process left it.
        held.hold().await.unwrap();
        drop(held);
        let next = vip("10.36.2.100");
        assert!(next.held().unwrap());
        assert!(next.release().await.unwrap());
        assert!(!next.held().unwrap());
    });
    done.await;
    assert_eq!(host.addresses().matches("10.36.2.").count(), 1, "{}", host.addresses());
}

#[tokio::test]
async fn the_announcer_gives_up_an_address_that_was_taken_away_and_hold_brings_it_back() {
    let Some(bed) = Bed::new("gone", 1, |host| format!("10.36.3.{host}/24")) else { return };
    let [host] = bed.hosts();
    host.ip(&["addr", "del", "10.36.3.1/24", "dev", "eth0"]);
    // The interface is found by its network also when its address has a label.
    host.ip(&["addr", "add", "10.36.3.1/24", "dev", "eth0", "label", "eth0:1"]);
    let held = vip("10.36.3.100");
    host.run(hold(&held)).await.unwrap();
    assert!(host.addresses().contains("10.36.3.100/32"));
    host.ip(&["addr", "del", "10.36.3.100/32", "dev", "eth0"]);
    let again = Arc::clone(&held);
    host.run(async move {
        assert!(!again.held().unwrap());
        again.hold().await.unwrap();
        assert!(again.held().unwrap());
    })
    .await;
}

#[tokio::test]
async fn what_something_else_configured_is_left_alone() {
    let Some(bed) = Bed::new("else", 1, |host| format!("10.36.4.{host}/24")) else { return };
    let [host] = bed.hosts();
    let held = vip("10.36.4.1");
    let refused = host.run(hold(&held)).await;
    // Its own address is the only one in the network, so the interface must be named.
    assert!(matches!(refused, Err(HoldError::Link(LinkError::NoneFits(_)))), "{refused:?}");
    let interface = Some("eth0".to_owned());
    let settings = VipSettings { interface, ..VipSettings::new("10.36.4.1".parse().unwrap()) };
    let held = Arc::new(Vip::new(settings.clone()).unwrap());
    let refused = host.run(hold(&held)).await;
    assert!(matches!(refused, Err(HoldError::Elsewhere { prefix_len: 24, .. })), "{refused:?}");
    assert!(!host.run(async move { held.release().await }).await.unwrap());
    assert!(host.addresses().contains("10.36.4.1/24"));

    let settings = VipSettings { interface: Some("eth7".into()), ..settings };
    let lost = Vip::new(settings).unwrap();
    let refused = host.run(async move { lost.hold().await }).await;
    assert!(matches!(refused, Err(HoldError::Link(LinkError::Unknown(name))) if name == "eth7"));
}

#[tokio::test]
async fn on_loopback_holding_is_a_flag() {
    let held = vip("127.36.0.200");
    assert_eq!(held.kind(), VipKind::Loopback);
    assert!(!held.held().unwrap());
    held.probe(PATIENCE).await.unwrap();
    held.hold().await.unwrap();
    assert!(held.held().unwrap());
    assert!(held.release().await.unwrap());
    assert!(!held.release().await.unwrap());
    assert!(!held.held().unwrap());
}

#[test]
fn senseless_settings_are_refused() {
    let with = |address: &str, prefix_len| {
        Vip::new(VipSettings { prefix_len, ..VipSettings::new(address.parse::<IpAddr>().unwrap()) }).map(drop)
    };
    for address in ["0.0.0.0", "255.255.255.255", "224.0.0.1", "::", "ff02::1"] {
        assert!(matches!(with(address, 32), Err(SettingsError::Address(_))), "{address}");
    }
    assert!(matches!(with("10.0.0.1", 33), Err(SettingsError::Prefix { longest: 32, found: 33, .. })));
    assert!(matches!(with("10.0.0.1", 0), Err(SettingsError::Prefix { .. })));
    assert!(with("fd00::1", 128).is_ok());
    let never = VipSettings { announce_every: Duration::ZERO, ..VipSettings::new("10.0.0.1".parse().unwrap()) };
    assert!(matches!(Vip::new(never).map(drop), Err(SettingsError::Every)));
}
