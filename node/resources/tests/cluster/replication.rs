//! Placing, repairing and taking over between three nodes.

use std::os::unix::fs::PermissionsExt;

use crate::bed::{Bed, path, peers, tree, until, write};
use quorate_resources::{Kind, PlaceError, TakeOverError};
use quorate_types::{Epoch, NodeId};

const ITEM: &str = "blueprints/default_tenant/web";

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_is_the_same_on_a_majority_and_later_on_all() {
    let bed = Bed::new();
    let [one, two, three] = bed.cluster().await;
    three.stop().await;
    let large = (0..300_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>();
    let staged =
        one.staged(&[("blueprint.yaml", b"x"), ("scripts/run.sh", b"#!"), ("big", &large), ("empty", b"")]).await;
    std::fs::set_permissions(staged.path().join("scripts/run.sh"), PermissionsExt::from_mode(0o4711)).unwrap();
    std::fs::create_dir(staged.path().join("nothing")).unwrap();
    std::os::unix::fs::symlink("../blueprint.yaml", staged.path().join("scripts/link")).unwrap();

    let placed = one.resources.place(Epoch(1), &path(ITEM), staged, &peers(1), 2).await.unwrap();
    assert_eq!(placed.nodes, [NodeId(1), NodeId(2)]);
    let expected = tree(&one.root.join(ITEM));
    assert_eq!(expected.len(), 7);
    assert_eq!(expected["scripts/run.sh".as_ref() as &std::path::Path].0 & 0o7777, 0o755);
    assert_eq!(tree(&two.root.join(ITEM)), expected);

    let three = bed.start(3).await;
    let repaired = three.resources.repair(&peers(3)).await;
    assert_eq!((repaired.pulled, repaired.failed, repaired.agreed.len()), (1, 0, 2), "{repaired:?}");
    assert_eq!(tree(&three.root.join(ITEM)), expected);
    assert_eq!(three.resources.status().await.digest, one.resources.status().await.digest);
    let again = three.resources.repair(&peers(3)).await;
    assert_eq!((again.pulled, again.agreed.len()), (0, 2));
    for node in [&one, &two, &three] {
        node.staging_is_empty().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_file_reaches_the_slow_peer_too() {
    let bed = Bed::new();
    let [one, _two, three] = bed.cluster().await;
    let staged = one.staged(&[("", b"wheel")]).await;
    let placed = one.resources.place(Epoch(1), &path("plugins/p.wgn"), staged, &peers(1), 2).await.unwrap();
    assert_eq!(placed.bytes, 5);
    assert_eq!(one.resources.item(&path("plugins/p.wgn")).await.unwrap().unwrap().kind, Kind::File);
    until("the third node to have it", || three.has("plugins/p.wgn")).await;
    assert_eq!(three.read("plugins/p.wgn"), b"wheel");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_nothing_is_visible_and_the_next_try_works() {
    let bed = Bed::new();
    let [one, two, three] = bed.cluster().await;
    two.stop().await;
    three.stop().await;
    let staged = one.staged(&[("a.txt", b"first")]).await;
    let refused = one.resources.place(Epoch(1), &path(ITEM), staged, &peers(1), 2).await.unwrap_err();
    assert!(matches!(&refused, PlaceError::NoMajority { have: 1, need: 2, refusals } if refusals.0.len() == 2));
    assert!(!one.has(ITEM));
    assert!(one.resources.item(&path(ITEM)).await.unwrap().is_none());
    one.staging_is_empty().await;

    let two = bed.start(2).await;
    one.place(1, 1, ITEM, b"second").await;
    assert_eq!(two.read(&format!("{ITEM}/a.txt")), b"second");
    assert_eq!(one.read(&format!("{ITEM}/a.txt")), b"second");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_epoch_is_refused_everywhere() {
    let bed = Bed::new();
    let [one, two, three] = bed.cluster().await;
    // Not yet taken over.
    let staged = two.staged(&[("a.txt", b"x")]).await;
    let early = two.resources.place(Epoch(2), &path(ITEM), staged, &peers(2), 2).await.unwrap_err();
    assert!(matches!(early, PlaceError::NotTakenOver { epoch: Epoch(2), base: Epoch(1) }));

    // The old holder cannot be reached while the others go on.
    let address = bed.address(1);
    bed.redirect(1, "127.35.0.9:1".parse().unwrap());
    let taken = two.resources.take_over(Epoch(2), &peers(2), 2).await.unwrap();
    assert_eq!(taken.heard, [NodeId(2), NodeId(3)]);
    bed.redirect(1, address);
    let staged = one.staged(&[("a.txt", b"old")]).await;
    let late = one.resources.place(Epoch(1), &path(ITEM), staged, &peers(1), 2).await.unwrap_err();
    assert!(matches!(late, PlaceError::Fenced { epoch: Epoch(1), promised: Epoch(2) }));
    let late = one.resources.remove(Epoch(1), &path(ITEM), &peers(1), 2).await.unwrap_err();
    assert!(matches!(late, PlaceError::Fenced { .. }));
    for node in [&one, &two, &three] {
        assert!(!node.has(ITEM));
    }
    let late = one.resources.take_over(Epoch(1), &peers(1), 2).await.unwrap_err();
    assert!(matches!(late, TakeOverError::Fenced { promised: Epoch(2), .. }));

    // What the node promised elsewhere counts here too.
    three.fence.send(Epoch(3)).unwrap();
    two.fence.send(Epoch(3)).unwrap();
    let staged = two.staged(&[("a.txt", b"x")]).await;
    let late = two.resources.place(Epoch(2), &path(ITEM), staged, &peers(2), 2).await.unwrap_err();
    assert!(matches!(late, PlaceError::Fenced { promised: Epoch(3), .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promise_survives_a_restart() {
    let bed = Bed::new();
    let [one, two, three] = bed.cluster().await;
    two.resources.take_over(Epoch(2), &[NodeId(1), NodeId(3)], 2).await.unwrap();
    three.stop().await;
    one.stop().await;
    let (one, three) = (bed.start(1).await, bed.start(3).await);
    let promised = [one.resources.status().await.promised, three.resources.status().await.promised];
    assert!(promised.contains(&Epoch(2)), "{promised:?}");
    // And the holder goes on where it was, without taking over again.
    two.stop().await;
    let two = bed.start(2).await;
    two.place(2, 2, ITEM, b"after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_directory_is_filled_again_and_does_not_count_before() {
    let bed = Bed::new();
    let [one, two, three] = bed.cluster().await;
    three.stop().await;
    one.place(1, 1, ITEM, b"kept").await;
    two.stop().await;
    std::fs::remove_dir_all(bed.root(2)).unwrap();
    let two = bed.start(2).await;
    assert!(!two.resources.status().await.complete);
    one.stop().await;
    let three = bed.start(3).await;
    // The only node with the item is away: neither of these may serve.
    let refused = three.resources.take_over(Epoch(2), &peers(3), 2).await.unwrap_err();
    assert!(matches!(refused, TakeOverError::NoMajority { have: 1, need: 2, fresh: 1 }), "{refused}");
    two.resources.repair(&peers(2)).await;
    assert!(!two.resources.status().await.complete);

    let one = bed.start(1).await;
    let repaired = two.resources.repair(&peers(2)).await;
    assert_eq!((repaired.pulled, repaired.failed), (1, 0), "{repaired:?}");
    assert!(two.resources.status().await.complete);
    assert_eq!(two.read(&format!("{ITEM}/a.txt")), b"kept");
    one.stop().await;
    three.resources.take_over(Epoch(3), &peers(3), 2).await.unwrap();
    assert_eq!(three.read(&format!("{ITEM}/a.txt")), b"kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_vanished_are_pulled_again() {
    let bed = Bed::new();
    let [one, two, _three] = bed.cluster().await;
    one.place(1, 1, ITEM, b"x").await;
    until("both to have it", || two.has(ITEM)).await;
    std::fs::remove_dir_all(two.root.join(ITEM)).unwrap();
    assert_eq!(two.resources.repair(&peers(2)).await.pulled, 1);
    assert_eq!(two.read(&format!("{ITEM}/a.txt")), b"x");
    std::fs::remove_dir_all(one.root.join(ITEM)).unwrap();
    assert_eq!(one.resources.repair(&peers(1)).await.pulled, 1);
    assert_eq!(one.read(&format!("{ITEM}/a.txt")), b"x");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_is_never_sent_on() {
    let bed = Bed::new();
    let [one, two, three] = bed.cluster().await;
    three.stop().await;
    one.place(1, 1, ITEM, b"right").await;
    write(&one.root.join(ITEM), &[("a.txt", b"wrong")]);
    let three = bed.start(3).await;
    let repaired = three.resources.repair(&[NodeId(1)]).await;
    assert_eq!((repaired.pulled, repaired.failed), (0, 1), "{repaired:?}");
    assert!(!three.has(ITEM));
    let repaired = three.resources.repair(&peers(3)).await;
    assert_eq!((repaired.pulled, repaired.failed), (1, 0), "{repaired:?}");
    assert_eq!(three.read(&format!("{ITEM}/a.txt")), two.read(&format!("{ITEM}/a.txt")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_reaches_who_was_away_and_is_kept_aside() {
    let bed = Bed::new();
    let [one, two, three] = bed.cluster().await;
    one.place(1, 1, ITEM, b"x").await;
    until("all to have it", || two.has(ITEM) && three.has(ITEM)).await;
    three.stop().await;
    one.resources.remove(Epoch(1), &path(ITEM), &peers(1), 2).await.unwrap();
    assert!(!one.has(ITEM) && !two.has(ITEM));
    assert!(one.resources.item(&path(ITEM)).await.unwrap().is_none());
    assert_eq!((one.kept_aside(), two.kept_aside()), (1, 1));
    let three = bed.start(3).await;
    assert!(three.has(ITEM));
    // The other direction first: nobody takes it back.
    assert_eq!(one.resources.repair(&peers(1)).await.pulled, 0);
    assert_eq!(three.resources.repair(&peers(3)).await.removed, 1);
    assert!(!three.has(ITEM));
    assert_eq!(three.kept_aside(), 1);
    // The path is free again, for a tree where a file could not be before.
    one.place(1, 1, &format!("{ITEM}/deeper"), b"y").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replacing_keeps_the_old_aside_and_open_files_readable() {
    let bed = Bed::new();
    let [one, two, _three] = bed.cluster().await;
    let at = format!("{ITEM}/a.txt");
    one.place(1, 1, ITEM, b"old").await;
    let mut open = one.resources.open_file(&at).await.unwrap();
    one.place(1, 1, ITEM, b"new").await;
    assert_eq!(one.read(&at), b"new");
    let mut text = String::new();
    std::io::Read::read_to_string(&mut open, &mut text).unwrap();
    assert_eq!(text, "old");
    assert_eq!(one.kept_aside(), 1);
    until("the peer to follow", || two.has(&at) && two.read(&at) == b"new").await;

    let staged = one.staged(&[("x", b"")]).await;
    let overlap = one.resources.place(Epoch(1), &path(&format!("{ITEM}/in")), staged, &peers(1), 2).await.unwrap_err();
    assert!(matches!(overlap, PlaceError::Install(_)), "{overlap}");
    let staged = one.staged(&[("x", b"")]).await;
    let over = path("blueprints/default_tenant");
    let overlap = one.resources.place(Epoch(1), &over, staged, &peers(1), 2).await.unwrap_err();
    assert!(matches!(overlap, PlaceError::Install(_)), "{overlap}");
    // A name that only begins the same is another item.
    one.place(1, 1, "blueprints/default_tenant/web-2", b"other").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn taking_over_brings_what_the_new_node_lacks() {
    let bed = Bed::new();
    let [one, two, three] = bed.cluster().await;
    three.stop().await;
    one.place(1, 1, ITEM, b"acknowledged").await;
    one.place(1, 1, "blueprints/default_tenant/gone", b"x").await;
    one.resources.remove(Epoch(1), &path("blueprints/default_tenant/gone"), &peers(1), 2).await.unwrap();
    one.stop().await;
    let three = bed.start(3).await;
    let taken = three.resources.take_over(Epoch(2), &peers(3), 2).await.unwrap();
    assert_eq!((taken.repaired.pulled, taken.repaired.removed), (1, 1));
    assert_eq!(three.read(&format!("{ITEM}/a.txt")), b"acknowledged");
    let placed = three.place(3, 2, "plugins/later", b"y").await;
    assert_eq!(placed.version.epoch, Epoch(2));
    two.stop().await;
    let refused = three.resources.take_over(Epoch(3), &peers(3), 2).await.unwrap_err();
    assert!(matches!(refused, TakeOverError::NoMajority { have: 1, .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_never_acknowledged_does_not_come_back() {
    let bed = Bed::new();
    let [one, two, three] = bed.cluster().await;
    one.place(1, 1, ITEM, b"acknowledged").await;
    until("all to have it", || two.has(ITEM) && three.has(ITEM)).await;
    three.stop().await;
    // All three are asked for, so these reach one peer and fail.
    for at in [ITEM, "plugins/never"] {
        let staged = one.staged(&[("a.txt", b"unacknowledged")]).await;
        let refused = one.resources.place(Epoch(1), &path(at), staged, &peers(1), 3).await.unwrap_err();
        assert!(matches!(refused, PlaceError::NoMajority { have: 2, need: 3, .. }), "{refused}");
        assert!(two.has(at));
    }
    assert_eq!(one.read(&format!("{ITEM}/a.txt")), b"acknowledged");
    two.stop().await;
    let three = bed.start(3).await;
    three.resources.take_over(Epoch(2), &peers(3), 2).await.unwrap();
    let two = bed.start(2).await;
    // From the one with the old base first: nothing may spread from there.
    assert_eq!(three.resources.repair(&peers(3)).await.pulled, 0);
    let repaired = two.resources.repair(&peers(2)).await;
    assert_eq!((repaired.pulled, repaired.dropped, repaired.failed), (1, 1, 0), "{repaired:?}");
    assert_eq!(two.read(&format!("{ITEM}/a.txt")), b"acknowledged");
    assert!(!two.has("plugins/never"));
    assert!(two.kept_aside() >= 2);
    assert_eq!(two.resources.status().await.digest, three.resources.status().await.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_is_settled_by_the_next_take_over() {
    let bed = Bed::new();
    let [one, two, three] = bed.cluster().await;
    one.place(1, 1, ITEM, b"x").await;
    until("all to have it", || two.has(ITEM) && three.has(ITEM)).await;
    three.stop().await;
    one.resources.remove(Epoch(1), &path(ITEM), &peers(1), 2).await.unwrap();
    two.resources.take_over(Epoch(2), &peers(2), 2).await.unwrap();
    assert_eq!(two.resources.status().await.items, 0);
    let three = bed.start(3).await;
    // Nobody takes up what the one that was away still has, nor the tombstone that others still have.
    assert_eq!(two.resources.repair(&peers(2)).await.pulled, 0);
    assert_eq!(two.resources.status().await.items, 0);
    assert_eq!(three.resources.repair(&peers(3)).await.failed, 0);
    assert!(!three.has(ITEM));
    assert_eq!(one.resources.repair(&peers(1)).await.failed, 0);
    for node in [&one, &three] {
        let status = node.resources.status().await;
        assert_eq!((status.items, status.base), (0, Epoch(2)));
    }
}
