//! One cluster of three hosts lives through everything that the stories tell.

use quorate_cluster_tests::bed::Bed;
use quorate_cluster_tests::cluster::Cluster;
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
}

#[test]
fn nothing_acknowledged_is_ever_lost() {
    if !Bed::is_possible() {
        panic!("this test needs root and network namespaces: run `make test` as root");
    }
    let mut cluster = Cluster::start(10, NODES).unwrap();
    say("kill -9 of the active node", &stories::kill_active(&mut cluster, "kill").unwrap());
    say("planned switchover", &stories::switchover(&mut cluster, "switch").unwrap());
    say("standby cut off", &stories::cut_off_standby(&mut cluster, "standby").unwrap());
    say("active node cut off", &stories::cut_off_active(&mut cluster, "cut", 1).unwrap());
    say("power loss of all", &stories::power_loss(&mut cluster, "power", NODES).unwrap());
    say("wiped node joins anew", &stories::wiped_node(&mut cluster, "wiped").unwrap());
}
