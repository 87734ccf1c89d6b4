//! An install of sixty operations goes on when the active node dies in the middle.

use quorate_cluster_tests::bed::Bed;
use quorate_cluster_tests::cluster::{Cluster, Timing};
use quorate_cluster_tests::stories::install::{self, TOTAL};

#[test]
fn an_install_survives_the_death_of_the_active_node() {
    assert!(Bed::is_possible(), "this test needs root and network namespaces: run `make test` as root");
    let mut cluster = Cluster::start(13, 3, Timing::Patient).unwrap();
    for (name, kill_at) in [("early", 5), ("late", 40)] {
        let told = install::kill_during_install(&mut cluster, name, kill_at)
            .unwrap_or_else(|error| panic!("{error:#}\n{}", cluster.keep_logs()));
        println!(
            "{name}: {TOTAL} operations, each result recorded once, in {:.1} s; the active node died when {} had ended; \
             {} ms without an acknowledged write; {} scripts ran a second time; {} rows found again",
            told.took.as_secs_f64(),
            told.killed_at,
            told.pause.as_millis(),
            told.ran_twice,
            told.rows
        );
    }
}
