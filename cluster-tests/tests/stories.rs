//! One cluster of three hosts lives through everything that the stories tell.

use quorate_cluster_tests::bed::Bed;
use quorate_cluster_tests::cluster::{Cluster, Timing};
use quorate_cluster_tests::stories::{self, Told};

const NODES: u8 = 3;

fn say(what: &str, told: &Told) {
    println!(
        "{what}: {} rows and {} files acknowledged and found, {} ms without an acknowledged write, {} writes failed",
        told.rows,
        told.files,
        told.pause.as_millis(),
        told.failed
    );
    if let Some(why) = &told.first_failure {
        println!("    the first: {why}");
    }
}

#[test]
fn nothing_acknowledged_is_ever_lost() {
    if !Bed::is_possible() {
        panic!("this test needs root and network namespaces: run `make test` as root");
    }
    let mut cluster = Cluster::start(10, NODES, Timing::Patient).unwrap();
    type Story = fn(&mut Cluster) -> anyhow::Result<Told>;
    let all: [(&str, Story); 6] = [
        ("kill -9 of the active node", |cluster| stories::kill_active(cluster, "kill")),
        ("planned switchover", |cluster| stories::switchover(cluster, "switch")),
        ("standby cut off", |cluster| stories::cut_off_standby(cluster, "standby")),
        ("active node cut off", |cluster| stories::cut_off_active(cluster, "cut", 1)),
        ("power loss of all", |cluster| stories::power_loss(cluster, "power", NODES)),
        ("wiped node joins anew", |cluster| stories::wiped_node(cluster, "wiped")),
    ];
    for (what, story) in all {
        match story(&mut cluster) {
            Ok(told) => say(what, &told),
            Err(error) => panic!("{what}: {error:#}\n{}", cluster.keep_logs()),
        }
    }
}
