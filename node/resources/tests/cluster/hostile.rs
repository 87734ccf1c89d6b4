//! What must not get in, out, or stay half done.

use std::time::Duration;

use crate::bed::{Bed, path, peers};
use futures::StreamExt;
use quorate_proto::resources::resources_client::ResourcesClient;
use quorate_proto::resources::{End, File, FileKind, Head, Kind, Part, part};
use quorate_resources::{InstallError, Limits, OpenFileError, PlaceError, TreeError};
use quorate_types::{Epoch, NodeId};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;

const ITEM: &str = "deployments/default_tenant/d1";

fn part(part: part::Part) -> Part {
    Part { part: Some(part) }
}

fn head(at: &str, kind: Kind, files: u64) -> Part {
    let digest = vec![0; 32];
    let head = Head { from: 1, path: at.into(), epoch: 1, sequence: 900, kind: kind.into(), files, bytes: 0, digest };
    part(part::Part::Head(head))
}

fn file(at: &str, size: u64, data: &[u8]) -> Part {
    let sha256 = Sha256::digest(data).to_vec();
    let kind = FileKind::Regular.into();
    let file = File { path: at.into(), kind, size, sha256, data: data.to_vec(), ..File::default() };
    part(part::Part::File(file))
}

fn link(at: &str, target: &str) -> Part {
    let file = File { path: at.into(), kind: FileKind::Symlink.into(), target: target.into(), ..File::default() };
    part(part::Part::File(file))
}

fn end() -> Part {
    part(part::Part::End(End {}))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_refuses_what_a_sender_must_not_send() {
    let bed = Bed::new();
    let node = bed.start(1).await;
    let mut client = ResourcesClient::connect(format!("http://{}", bed.address(1))).await.unwrap();
    let outside = bed.root(1).parent().unwrap().join("stolen");
    let tree = Kind::Tree;
    let mut many = vec![head(ITEM, tree, 101)];
    many.extend((0..101).map(|number| file(&format!("f{number}"), 0, b"")));
    let cases: Vec<(&str, &str, Vec<Part>)> = vec![
        ("no head", "no head", vec![end()]),
        ("nothing", "no head", vec![]),
        ("path up", "plain relative path", vec![head("deployments/../../stolen", tree, 0), end()]),
        ("private path", "data directories", vec![head(".quorate/staging", tree, 0), end()]),
        ("absolute path", "plain relative path", vec![head("/tmp/stolen", tree, 0), end()]),
        ("file up", "plain relative path", vec![head(ITEM, tree, 1), file("../../../stolen", 1, b"x"), end()]),
        ("file absolute", "plain relative path", vec![head(ITEM, tree, 1), file("/tmp/stolen", 1, b"x"), end()]),
        ("link up", "points to", vec![head(ITEM, tree, 1), link("l", "../../../.."), end()]),
        (
            "through a link",
            "before its directory",
            vec![head(ITEM, tree, 2), link("l", "."), file("l/x", 1, b"x"), end()],
        ),
        ("link as item", "does not fit", vec![head(ITEM, Kind::File, 1), link("", "x"), end()]),
        ("twice", "File exists", vec![head(ITEM, tree, 2), file("a", 1, b"x"), file("a", 1, b"x"), end()]),
        ("too few files", "cut off", vec![head(ITEM, tree, 2), file("a", 1, b"x"), end()]),
        (
            "too many files",
            "more files than announced",
            vec![head(ITEM, tree, 1), file("a", 1, b"x"), file("b", 1, b"x"), end()],
        ),
        ("too many entries", "more than 100 files", many),
        ("too large", "at most", vec![head(ITEM, tree, 1), file("a", 1 << 40, b"x"), end()]),
        ("too short", "cut off", vec![head(ITEM, tree, 1), file("a", 2, b"x"), end()]),
        ("too long", "differs", vec![head(ITEM, tree, 1), file("a", 1, b"xy"), end()]),
        ("wrong digest", "differs", vec![head(ITEM, tree, 1), file("a", 1, b"x"), end()]),
        ("a tombstone with files", "does not fit", vec![head(ITEM, Kind::Tombstone, 1), file("a", 1, b"x"), end()]),
        ("without an end", "cut off", vec![head(ITEM, tree, 1), file("a", 1, b"x")]),
    ];
    for (what, why, parts) in cases {
        let said = client.place(tokio_stream::iter(parts)).await;
        let refused = said.expect_err(what);
        assert!(refused.message().contains(why), "{what}: {refused:?}");
        assert!(!node.has(ITEM), "{what}");
    }
    assert!(!outside.exists() && !std::path::Path::new("/tmp/stolen").exists());
    node.staging_is_empty().await;
    assert_eq!(node.resources.status().await.items, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_breaks_off_leaves_nothing_on_the_receiver() {
    let bed = Bed::new();
    let node = bed.start(1).await;
    let mut client = ResourcesClient::connect(format!("http://{}", bed.address(1))).await.unwrap();
    let parts = vec![head(ITEM, Kind::Tree, 2), file("a", 1, b"x"), file("b", 100, b"half")];
    let stuck = tokio_stream::iter(parts).chain(futures::stream::pending());
    let mut call = Box::pin(client.place(stuck));
    let staging = node.root.join(".quorate/staging");
    // The sender dies when the receiver has begun.
    let begun = crate::bed::until("the transfer to begin", || std::fs::read_dir(&staging).unwrap().next().is_some());
    tokio::select! {
        said = &mut call => panic!("{said:?}"),
        () = begun => {}
    }
    drop(call);
    node.staging_is_empty().await;
    assert!(!node.has(ITEM));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_sender_is_given_up() {
    let mut bed = Bed::new();
    bed.limits.idle = Duration::from_millis(200);
    let node = bed.start(1).await;
    let mut client = ResourcesClient::connect(format!("http://{}", bed.address(1))).await.unwrap();
    let stuck = tokio_stream::iter([head(ITEM, Kind::Tree, 1)]).chain(futures::stream::pending());
    let said = client.place(stuck).await.unwrap_err();
    assert!(said.message().contains("nothing moved"), "{said}");
    node.staging_is_empty().await;
}

/// Accepts connections and never says a word.
async fn silent_peer() -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.35.0.8:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let held = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((socket, _)) = listener.accept().await {
            held.push(socket);
        }
    });
    (address, held)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_hangs_holds_nobody_up() {
    let mut bed = Bed::new();
    bed.limits.idle = Duration::from_millis(300);
    bed.limits.finish = Duration::from_millis(600);
    let [one, two, three] = bed.cluster().await;
    three.stop().await;
    let (address, held) = silent_peer().await;
    bed.redirect(3, address);
    // More placements than there are turns for one peer.
    for number in 0..8 {
        let placed = one.place(1, 1, &format!("plugins/p{number}"), &[7; 100_000]).await;
        assert_eq!(placed.nodes, [NodeId(1), NodeId(2)]);
    }
    let staged = one.staged(&[("a", &[7; 100_000])]).await;
    let refused = one.resources.place(Epoch(1), &path(ITEM), staged, &peers(1), 3).await.unwrap_err();
    assert!(matches!(refused, PlaceError::NoMajority { have: 2, need: 3, .. }), "{refused}");
    assert!(!one.has(ITEM) && two.has("plugins/p7"));
    held.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_placement_leaves_nothing_visible() {
    let bed = Bed::new();
    let [one, two, three] = bed.cluster().await;
    two.stop().await;
    three.stop().await;
    let (address, held) = silent_peer().await;
    bed.redirect(2, address);
    bed.redirect(3, address);
    let staged = one.staged(&[("a", &[7; 1_000_000])]).await;
    let (item, others) = (path(ITEM), peers(1));
    let placing = one.resources.place(Epoch(1), &item, staged, &others, 2);
    // The peers never answer, so it is still waiting when it is dropped.
    assert!(tokio::time::timeout(Duration::from_millis(300), placing).await.is_err());
    one.staging_is_empty().await;
    assert!(!one.has(ITEM));
    held.abort();
    let two = bed.start(2).await;
    one.place(1, 1, ITEM, b"again").await;
    assert!(two.has(ITEM));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_at_once_and_leaves_nothing() {
    let bed = Bed::new();
    let full = Limits { free_bytes_kept: u64::MAX / 2, ..bed.limits };
    let [one, two, three] = bed.cluster().await;
    two.stop().await;
    three.stop().await;
    let two = bed.start_with(2, full).await;
    let staged = one.staged(&[("a", b"x")]).await;
    let refused = one.resources.place(Epoch(1), &path(ITEM), staged, &peers(1), 2).await.unwrap_err();
    assert!(refused.to_string().contains("is full"), "{refused}");
    assert!(!one.has(ITEM) && !two.has(ITEM));
    two.staging_is_empty().await;

    one.stop().await;
    let one = bed.start_with(1, full).await;
    let staged = one.staged(&[("a", b"x")]).await;
    let refused = one.resources.place(Epoch(1), &path(ITEM), staged, &peers(1), 2).await.unwrap_err();
    assert!(matches!(refused, PlaceError::Install(InstallError::DiskFull)), "{refused}");
    one.staging_is_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_or_special_is_not_placed() {
    let bed = Bed::new();
    let [one, _two, _three] = bed.cluster().await;
    let place = async |staged| {
        let refused = one.resources.place(Epoch(1), &path(ITEM), staged, &peers(1), 2).await.unwrap_err();
        assert!(!one.has(ITEM));
        match refused {
            PlaceError::Tree(error) => error,
            other => panic!("{other}"),
        }
    };
    let large = vec![1; (4 << 20) + 1];
    assert!(matches!(place(one.staged(&[("a", &large)]).await).await, TreeError::FileTooLarge { .. }));
    let half = &large[..3 << 20];
    assert!(matches!(place(one.staged(&[("a", half), ("b", half), ("c", half)]).await).await, TreeError::TooLarge(_)));
    let names: Vec<String> = (0..101).map(|number| number.to_string()).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    assert!(matches!(place(one.staged(&files).await).await, TreeError::TooMany(100)));
    for target in ["/etc/passwd", "../../../../../etc/passwd"] {
        let staged = one.staged(&[("a", b"")]).await;
        std::os::unix::fs::symlink(target, staged.path().join("l")).unwrap();
        assert!(matches!(place(staged).await, TreeError::Path(_)));
    }
    let staged = one.resources.staging().await.unwrap();
    std::os::unix::fs::symlink("/etc/passwd", staged.path()).unwrap();
    assert!(matches!(place(staged).await, TreeError::Special(_)));
    let staged = one.staged(&[("a", b"")]).await;
    let socket = std::os::unix::net::UnixListener::bind(staged.path().join("s")).unwrap();
    assert!(matches!(place(staged).await, TreeError::Special(_)));
    drop(socket);
    let staged = one.staged(&[("a", b"")]).await;
    std::fs::write(staged.path().join(std::str::from_utf8(b"ok").unwrap()), b"").unwrap();
    let odd = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"\xff");
    std::fs::write(staged.path().join(odd), b"").unwrap();
    assert!(matches!(place(staged).await, TreeError::NotUtf8(_)));
    one.staging_is_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_served_from_inside_only() {
    let bed = Bed::new();
    let node = bed.start(1).await;
    let outside = bed.root(1).parent().unwrap().join("secret");
    std::fs::write(&outside, "secret").unwrap();
    std::fs::write(node.root.join(".quorate/staging/hidden"), "hidden").unwrap();
    let at = node.root.join("tenant-resources/t");
    crate::bed::write(&at, &[("a.txt", b"hello"), ("sub/b.txt", b"b")]);
    let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, at.join(name)).unwrap();
    link("sub/b.txt", "inside");
    link("../t/a.txt", "round");
    link("../../../secret", "out");
    link(outside.to_str().unwrap(), "absolute");
    link("../../.quorate/staging/hidden", "private");
    link("..", "up");
    link("loop", "loop");
    nix::unistd::mkfifo(&at.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let read = async |path: &str| {
        let mut file = node.resources.open_file(path).await?;
        let mut text = String::new();
        std::io::Read::read_to_string(&mut file, &mut text).unwrap();
        Ok::<_, OpenFileError>(text)
    };
    assert_eq!(read("tenant-resources/t/a.txt").await.unwrap(), "hello");
    assert_eq!(read("tenant-resources/t/inside").await.unwrap(), "b");
    assert_eq!(read("tenant-resources/t/round").await.unwrap(), "hello");
    for bad in [
        "",
        "/",
        "tenant-resources",
        "tenant-resources/t",
        "tenant-resources/t/",
        "tenant-resources/t/out",
        "tenant-resources/t/absolute",
        "tenant-resources/t/private",
        "tenant-resources/t/up/../../secret",
        "tenant-resources/t/up/t/../../../secret",
        "tenant-resources/t/loop",
        "tenant-resources/t/pipe",
        "tenant-resources/../.quorate/manifest",
        ".quorate/manifest",
        "tenant-resources/t/a.txt/x",
        "/etc/passwd",
        "tenant-resources/t/a.txt\0",
        "tenant-resources//t/a.txt",
        "elsewhere/x",
    ] {
        assert!(matches!(read(bad).await, Err(OpenFileError::NotFound(_))), "{bad}");
    }
}
