//! The decision, case by case. Whole clusters under faults are in `tests/sim_failover.rs`.

use quorate_types::Member;
use quorate_types::cluster::Opened;

use super::*;

const POLICY: Policy = Policy { silence: Duration::from_millis(600), promotion: Duration::from_secs(5) };

/// Three nodes; n1 opened epoch 1; n2 leads Raft; `ANY 1`.
fn three() -> (ClusterState, Observation) {
    let member = |id: u64| Member {
        id: NodeId(id),
        name: format!("node{id}"),
        address: [10, 0, 0, u8::try_from(id).unwrap()].into(),
        public_key_sha256: String::new(),
        voter: true,
    };
    let first = EpochRecord {
        epoch: Epoch(1),
        holder: NodeId(1),
        parent: Epoch(0),
        reason: String::new(),
        opened: Some(Opened { timeline: TimelineId(2), start: Lsn(10) }),
    };
    let state = ClusterState {
        cluster_id: "c".into(),
        members: (1..=3).map(|id| (NodeId(id), member(id))).collect(),
        epochs: [(Epoch(1), first)].into(),
        sync: SyncSet { num_sync: 1, members: (1..=3).map(NodeId).collect() },
        switchover_to: None,
    };
    let seen = |role| Seen {
        silent_for: Duration::from_millis(50),
        refused: false,
        role,
        epoch: Epoch(1),
        promised: Epoch(1),
        holder_heard: Some(Duration::from_millis(80)),
    };
    let nodes = [(NodeId(1), seen(Role::Active)), (NodeId(2), seen(Role::Standby)), (NodeId(3), seen(Role::Standby))];
    let observation = Observation {
        leader: NodeId(2),
        nodes: nodes.into(),
        since_grant: Duration::from_secs(60),
        frozen: BTreeMap::new(),
    };
    (state, observation)
}

fn at(lineage: u64, lsn: u64) -> Position {
    Position { lineage: Epoch(lineage), lsn: Lsn(lsn), timeline: TimelineId(2) }
}

fn lose_the_holder(seen: &mut Observation) {
    for view in seen.nodes.values_mut() {
        view.holder_heard = Some(Duration::from_secs(2));
    }
    seen.nodes.get_mut(&NodeId(1)).unwrap().silent_for = Duration::from_secs(2);
}

fn holder_of(actions: &[Action]) -> Option<NodeId> {
    actions.iter().find_map(|action| match action {
        Action::Grant { holder, .. } => Some(*holder),
        _ => None,
    })
}

#[test]
fn leaves_a_healthy_holder_alone() {
    let (state, seen) = three();
    assert_eq!(decide(&state, &seen, &POLICY), (Reason::Healthy { node: NodeId(1), epoch: Epoch(1) }, vec![]));
}

#[test]
fn freezes_everybody_it_can_reach_before_it_grants() {
    let (state, mut seen) = three();
    lose_the_holder(&mut seen);
    let (_, actions) = decide(&state, &seen, &POLICY);
    assert_eq!(actions, [Action::Freeze { epoch: Epoch(2), nodes: [NodeId(2), NodeId(3)].into() }]);
}

#[test]
fn a_process_that_is_gone_needs_no_patience() {
    let (state, mut seen) = three();
    seen.nodes.get_mut(&NodeId(1)).unwrap().refused = true;
    assert!(matches!(decide(&state, &seen, &POLICY).1[..], [Action::Freeze { .. }]));
}

#[test]
fn a_holder_that_others_hear_is_not_unseated() {
    let (state, mut seen) = three();
    seen.nodes.get_mut(&NodeId(1)).unwrap().silent_for = Duration::from_secs(2);
    assert_eq!(decide(&state, &seen, &POLICY), (Reason::HolderHeardByOthers { node: NodeId(1) }, vec![]));
}

#[test]
fn waits_until_the_last_commit_must_be_among_the_reports() {
    let (state, mut seen) = three();
    lose_the_holder(&mut seen);
    seen.frozen.insert(NodeId(2), at(1, 100));
    assert_eq!(holder_of(&decide(&state, &seen, &POLICY).1), None);
    seen.frozen.insert(NodeId(3), at(1, 90));
    assert_eq!(holder_of(&decide(&state, &seen, &POLICY).1), Some(NodeId(2)));
    seen.frozen.insert(NodeId(3), at(1, 110));
    assert_eq!(holder_of(&decide(&state, &seen, &POLICY).1), Some(NodeId(3)), "the furthest wins over the leader");
}

#[test]
fn the_last_holder_alone_is_enough() {
    let (state, mut seen) = three();
    lose_the_holder(&mut seen);
    seen.frozen.insert(NodeId(1), at(1, 100));
    assert_eq!(holder_of(&decide(&state, &seen, &POLICY).1), Some(NodeId(1)));
}

#[test]
fn nobody_is_frozen_for_an_election_that_cannot_succeed() {
    let (state, mut seen) = three();
    lose_the_holder(&mut seen);
    seen.nodes.get_mut(&NodeId(3)).unwrap().silent_for = Duration::from_secs(9);
    let (reason, actions) = decide(&state, &seen, &POLICY);
    assert!(actions.is_empty());
    assert!(matches!(reason, Reason::TooFew { have: 0, need: 2, .. }), "{reason}");
}

#[test]
fn an_epoch_that_was_never_opened_counts_nothing() {
    let (mut state, mut seen) = three();
    let unopened =
        EpochRecord { epoch: Epoch(2), holder: NodeId(2), parent: Epoch(1), reason: String::new(), opened: None };
    state.epochs.insert(Epoch(2), unopened);
    // n2 died right after its promotion. n1, the holder of the last opened epoch, came back with n3.
    seen.nodes.get_mut(&NodeId(2)).unwrap().silent_for = Duration::from_secs(3);
    seen.leader = NodeId(3);
    for view in seen.nodes.values_mut() {
        view.holder_heard = None;
        view.promised = Epoch(2);
    }
    assert!(matches!(&decide(&state, &seen, &POLICY).1[..], [Action::Freeze { epoch: Epoch(3), .. }]));
    seen.frozen.insert(NodeId(3), at(1, 100));
    assert_eq!(holder_of(&decide(&state, &seen, &POLICY).1), None, "n2 could hold a commit that n3 lacks");
    seen.frozen.insert(NodeId(1), at(1, 105));
    assert_eq!(holder_of(&decide(&state, &seen, &POLICY).1), Some(NodeId(1)));
}

#[test]
fn a_dead_branch_cannot_win() {
    let (mut state, mut seen) = three();
    for (epoch, holder, parent, open) in [(2, 2, 1, false), (3, 3, 1, true)] {
        let opened = open.then_some(Opened { timeline: TimelineId(3), start: Lsn(50) });
        let record = EpochRecord {
            epoch: Epoch(epoch),
            holder: NodeId(holder),
            parent: Epoch(parent),
            reason: String::new(),
            opened,
        };
        state.epochs.insert(Epoch(epoch), record);
    }
    seen.nodes.get_mut(&NodeId(3)).unwrap().refused = true;
    seen.frozen = [(NodeId(1), at(3, 60)), (NodeId(2), at(2, 9000))].into();
    let (_, actions) = decide(&state, &seen, &POLICY);
    assert_eq!(holder_of(&actions), Some(NodeId(1)), "epoch 2 was never opened and epoch 3 does not continue it");
}

#[test]
fn a_promise_forces_the_change_to_go_on() {
    let (state, mut seen) = three();
    seen.nodes.get_mut(&NodeId(3)).unwrap().promised = Epoch(2);
    assert!(matches!(&decide(&state, &seen, &POLICY).1[..], [Action::Freeze { epoch: Epoch(2), .. }]));
}

#[test]
fn a_switchover_resigns_the_holder_and_then_picks_the_target() {
    let (mut state, mut seen) = three();
    state.switchover_to = Some(NodeId(3));
    let (_, actions) = decide(&state, &seen, &POLICY);
    assert_eq!(actions, [Action::Resign { node: NodeId(1), epoch: Epoch(1) }]);
    seen.nodes.get_mut(&NodeId(1)).unwrap().role = Role::Resigned;
    seen.frozen = (1..=3).map(|id| (NodeId(id), at(1, 100))).collect();
    assert_eq!(holder_of(&decide(&state, &seen, &POLICY).1), Some(NodeId(3)));
    seen.frozen.insert(NodeId(1), at(1, 101));
    assert_eq!(holder_of(&decide(&state, &seen, &POLICY).1), Some(NodeId(1)), "nothing is lost for a switchover");
}

#[test]
fn the_first_epoch_goes_to_the_founder() {
    let (mut state, mut seen) = three();
    state.epochs.clear();
    state.members.retain(|id, _| *id == NodeId(1));
    state.sync = SyncSet { num_sync: 0, members: [NodeId(1)].into() };
    seen.leader = NodeId(1);
    assert!(matches!(&decide(&state, &seen, &POLICY).1[..], [Action::Freeze { epoch: Epoch(1), .. }]));
    seen.frozen.insert(NodeId(1), at(0, 1));
    assert_eq!(holder_of(&decide(&state, &seen, &POLICY).1), Some(NodeId(1)));
}

#[test]
fn with_five_nodes_three_of_four_standbys_decide() {
    let (mut state, mut seen) = three();
    for id in [4, 5] {
        let mut member = state.members[&NodeId(3)].clone();
        member.id = NodeId(id);
        state.members.insert(NodeId(id), member);
        seen.nodes.insert(NodeId(id), seen.nodes[&NodeId(3)].clone());
    }
    state.sync = SyncSet { num_sync: 2, members: (1..=5).map(NodeId).collect() };
    lose_the_holder(&mut seen);
    seen.frozen = [(NodeId(2), at(1, 5)), (NodeId(4), at(1, 7))].into();
    assert_eq!(holder_of(&decide(&state, &seen, &POLICY).1), None);
    seen.frozen.insert(NodeId(5), at(1, 6));
    assert_eq!(holder_of(&decide(&state, &seen, &POLICY).1), Some(NodeId(4)));
}

#[test]
fn a_dead_branch_does_not_count_towards_the_rule() {
    let (mut state, mut seen) = three();
    for (epoch, holder, parent) in [(2, 1, 1), (3, 2, 1)] {
        let record = EpochRecord {
            epoch: Epoch(epoch),
            holder: NodeId(holder),
            parent: Epoch(parent),
            reason: String::new(),
            opened: Some(Opened { timeline: TimelineId(3), start: Lsn(50) }),
        };
        state.epochs.insert(Epoch(epoch), record);
    }
    seen.nodes.get_mut(&NodeId(2)).unwrap().refused = true;
    // A commit of epoch 1 is on n1 and n2. n1 went into a branch that nobody continued; n3 never had it.
    seen.frozen = [(NodeId(1), at(2, 51)), (NodeId(3), at(1, 40))].into();
    let (reason, actions) = decide(&state, &seen, &POLICY);
    assert!(matches!(reason, Reason::TooFew { have: 1, need: 2, .. }), "{reason}");
    assert_eq!(actions, []);
}

#[test]
fn what_the_holder_said_before_its_grant_does_not_unseat_it() {
    let (mut state, mut seen) = three();
    let granted =
        EpochRecord { epoch: Epoch(2), holder: NodeId(1), parent: Epoch(1), reason: String::new(), opened: None };
    state.epochs.insert(Epoch(2), granted);
    seen.nodes.get_mut(&NodeId(1)).unwrap().role = Role::Fenced;
    seen.since_grant = Duration::from_millis(5);
    assert_eq!(decide(&state, &seen, &POLICY).1, []);
    state.epochs.get_mut(&Epoch(2)).unwrap().opened = Some(Opened { timeline: TimelineId(3), start: Lsn(50) });
    assert_eq!(decide(&state, &seen, &POLICY).1, []);
    seen.since_grant = POLICY.silence;
    assert!(matches!(decide(&state, &seen, &POLICY).1[..], [Action::Freeze { .. }]), "it still says so");
}
