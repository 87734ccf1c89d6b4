//! The one task that owns foca: feeds it packets, timers and orders, and carries out what it wants.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use foca::{Foca, Member, Notification, PostcardCodec, Runtime, Timer};
use foca_rand::SeedableRng;
use foca_rand::rngs::SmallRng;
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::exchange::{self, Exchange};
use crate::identity::{Identity, stamp_now};
use crate::load::{Load, LoadNews, SharedLoads};
use crate::member::{MemberState, Members, view};
use crate::seal::Channel;
use crate::settings::{GossipSettings, Pace, usable_seeds};
use crate::start::Shared;
use crate::{MEMBERS_MAX, PACKET_BYTES_MAX};

/// How many exchanges this node may have begun at a time; a further one is left out, the next round tries again.
const EXCHANGES_MAX: usize = 8;
/// How long to wait after the socket failed, so that a broken one does not keep a core busy.
const SOCKET_PAUSE: Duration = Duration::from_millis(100);

/// What reaches the driver from other tasks.
pub(crate) enum Event {
    /// A member told what it knows and waits for an answer.
    Asked { exchange: Exchange, reply: oneshot::Sender<Exchange> },
    /// An exchange that this node began has ended; `None` when it failed.
    Answered { address: SocketAddr, exchange: Option<Exchange> },
}

/// What foca wants done, gathered while it runs.
#[derive(Default)]
struct Wishes {
    packets: Vec<(SocketAddr, Vec<u8>)>,
    timers: Vec<(Timer<Identity>, Duration)>,
    /// Somebody joined, who has not heard this node's load.
    somebody_joined: bool,
}

impl Runtime<Identity> for Wishes {
    fn notify(&mut self, notification: Notification<'_, Identity>) {
        match notification {
            Notification::MemberUp(_) => self.somebody_joined = true,
            Notification::Rejoin(own) => info!(stamp = own.stamp, "gossip had this node as down, it is back"),
            _ => {}
        }
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        self.packets.push((to.address, data.to_vec()));
    }

    fn submit_after(&mut self, event: Timer<Identity>, after: Duration) {
        self.timers.push((event, after));
    }
}

/// Owns foca.
pub(crate) struct Driver {
    foca: Foca<Identity, PostcardCodec, SmallRng, SharedLoads>,
    udp: UdpSocket,
    shared: Shared,
    view: watch::Sender<Members>,
    pace: Pace,
    loads: SharedLoads,
    own_load: LoadNews,
    seeds: Vec<SocketAddr>,
    /// The number keeps two timers of one instant apart.
    timers: BTreeMap<(Instant, u64), Timer<Identity>>,
    timers_made: u64,
    /// To whom an exchange is under way.
    exchanging: BTreeSet<SocketAddr>,
}

impl Driver {
    /// `stamp` is that of this life, later than those of all lives before unless the clock went back.
    pub(crate) fn new(
        settings: &GossipSettings,
        stamp: u64,
        udp: UdpSocket,
        view: watch::Sender<Members>,
        shared: Shared,
    ) -> Self {
        let identity = Identity { node: settings.node, address: settings.address, stamp, name: settings.name.clone() };
        let loads = SharedLoads::default();
        let foca = Foca::with_custom_broadcast(
            identity,
            settings.pace.config(),
            SmallRng::seed_from_u64(rand::rng().random()),
            PostcardCodec,
            loads.clone(),
        );
        Self {
            foca,
            udp,
            shared,
            view,
            pace: settings.pace,
            loads,
            own_load: LoadNews { node: settings.node, number: stamp, load: settings.load.clone() },
            seeds: usable_seeds(settings.address, &settings.seeds),
            timers: BTreeMap::new(),
            timers_made: 0,
            exchanging: BTreeSet::new(),
        }
    }

    /// Runs until stopped, then says goodbye.
    pub(crate) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Event>,
        mut seeds: watch::Receiver<Vec<SocketAddr>>,
        mut load: watch::Receiver<Load>,
        stop: CancellationToken,
    ) {
        let mut rejoin = interval(self.pace.rejoin);
        rejoin.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sync = interval(self.pace.sync);
        sync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // One byte more than is read, to tell a longer packet from a full one.
        let mut buffer = vec![0; PACKET_BYTES_MAX + 1];
        self.announce_load();
        self.publish();
        loop {
            let next_timer = self.timers.first_key_value().map(|((at, _), _)| *at);
            tokio::select! {
                () = stop.cancelled() => break,
                received = self.udp.recv_from(&mut buffer) => match received {
                    Ok((length, _)) => self.packet(&buffer[..length]),
                    Err(error) => {
                        warn!(error = &error as &dyn Error, "gossip cannot receive packets");
                        sleep(SOCKET_PAUSE).await;
                    }
                },
                Some(event) = inbox.recv() => self.event(event),
                () = until(next_timer), if next_timer.is_some() => self.due_timers(),
                _ = rejoin.tick() => self.rejoin(),
                _ = sync.tick() => self.sync(),
                Ok(()) = seeds.changed() => {
                    self.seeds = usable_seeds(self.foca.identity().address, &seeds.borrow_and_update());
                    self.rejoin();
                }
                Ok(()) = load.changed() => {
                    self.own_load.load = load.borrow_and_update().clone();
                    self.own_load.number = stamp_now().max(self.own_load.number + 1);
                    self.announce_load();
                }
            }
            self.publish();
        }
        self.with_foca("leave", |foca, wishes| foca.leave_cluster(wishes));
    }

    /// Lets foca work, then does what it wants. Whether it went well.
    fn with_foca(
        &mut self,
        what: &'static str,
        work: impl FnOnce(&mut Foca<Identity, PostcardCodec, SmallRng, SharedLoads>, &mut Wishes) -> Result<(), foca::Error>,
    ) -> bool {
        let mut wishes = Wishes::default();
        let done = work(&mut self.foca, &mut wishes);
        for (to, packet) in wishes.packets {
            self.send(to, &packet);
        }
        let now = Instant::now();
        for (timer, after) in wishes.timers {
            self.schedule(now + after, timer);
        }
        if wishes.somebody_joined {
            self.announce_load();
        }
        if let Err(error) = &done {
            debug!(what, error = error as &dyn Error, "gossip step refused");
        }
        done.is_ok()
    }

    fn send(&self, to: SocketAddr, packet: &[u8]) {
        let sealed = self.shared.sealer.seal(Channel::Packet, packet);
        debug_assert!(sealed.len() <= PACKET_BYTES_MAX, "foca keeps to the packet size it was given");
        // A full buffer or an unreachable host loses the packet, as the network may.
        match self.udp.try_send_to(&sealed, to) {
            Ok(_) => _ = self.shared.tally.sent.fetch_add(1, Relaxed),
            Err(error) => debug!(%to, error = &error as &dyn Error, "gossip packet not sent"),
        }
    }

    fn schedule(&mut self, at: Instant, timer: Timer<Identity>) {
        // Reminders to forget a member wait for a day. One for each address is enough, and bounds them: only the
        // latest life of an address is remembered.
        if let Timer::RemoveDown(down) = &timer {
            self.timers.retain(|_, known| !matches!(known, Timer::RemoveDown(other) if other.address == down.address));
        }
        self.timers_made += 1;
        self.timers.insert((at, self.timers_made), timer);
    }

    fn due_timers(&mut self) {
        let now = Instant::now();
        while let Some(entry) = self.timers.first_entry().filter(|entry| entry.key().0 <= now) {
            let timer = entry.remove();
            self.with_foca("timer", |foca, wishes| foca.handle_timer(timer, wishes));
        }
    }

    fn packet(&mut self, sealed: &[u8]) {
        let opened =
            if sealed.len() <= PACKET_BYTES_MAX { self.shared.sealer.open(Channel::Packet, sealed) } else { None };
        let Some(packet) = opened else {
            self.shared.tally.unsealed.fetch_add(1, Relaxed);
            return;
        };
        self.shared.tally.received.fetch_add(1, Relaxed);
        if !self.with_foca("packet", |foca, wishes| foca.handle_data(&packet, wishes)) {
            self.shared.tally.malformed.fetch_add(1, Relaxed);
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Asked { exchange, reply } => {
                let from = exchange.from.clone();
                self.learn(exchange);
                // Built after learning: it shows that this node contradicts a suspicion it was just told of.
                let answer = self.tell(from);
                // The asker may be gone.
                _ = reply.send(answer);
            }
            Event::Answered { address, exchange } => {
                self.exchanging.remove(&address);
                if let Some(exchange) = exchange {
                    self.learn(exchange);
                }
            }
        }
    }

    /// What this node knows, for `to`.
    fn tell(&mut self, to: Identity) -> Exchange {
        let mut hello = Wishes::default();
        if let Err(error) = self.foca.announce(to, &mut hello) {
            debug!(error = &error as &dyn Error, "gossip greeting not made");
        }
        let mut members: Vec<Member<Identity>> = self.foca.iter_membership_state().cloned().collect();
        members.sort_by_key(|member| member.state() == foca::State::Down);
        members.truncate(MEMBERS_MAX);
        Exchange {
            from: self.foca.identity().clone(),
            hello: hello.packets.pop().map(|(_, packet)| packet).unwrap_or_default(),
            members,
            loads: self.loads.with(|loads| loads.all()),
        }
    }

    fn learn(&mut self, told: Exchange) {
        let own = self.foca.identity().clone();
        if told.from.address == own.address {
            return;
        }
        // An earlier life of this node with a later stamp, from before the clock went back, would beat this life.
        let beaten_by = told.members.iter().map(Member::id).filter(|id| id.address == own.address && **id != own);
        if let Some(stamp) = beaten_by.map(|id| id.stamp).max().filter(|stamp| *stamp >= own.stamp) {
            self.with_foca("identity", |foca, wishes| foca.change_identity(own.after(stamp), wishes));
        }
        for news in told.loads.into_iter().take(MEMBERS_MAX) {
            if news.node != own.node {
                self.spread(&news);
            } else if news.number >= self.own_load.number && news != self.own_load {
                self.own_load.number = news.number.saturating_add(1);
                self.announce_load();
            }
        }
        let (members, hello) = (told.members.into_iter().take(MEMBERS_MAX), told.hello);
        self.with_foca("members", |foca, wishes| foca.apply_many(members, true, wishes));
        self.with_foca("greeting", |foca, wishes| foca.handle_data(&hello, wishes));
    }

    fn announce_load(&mut self) {
        // The same number again would not be news, also not to the own backlog of what is to be spread.
        self.own_load.number += 1;
        let news = self.own_load.clone();
        self.spread(&news);
    }

    fn spread(&mut self, news: &LoadNews) {
        match postcard::to_stdvec(news) {
            Ok(bytes) => {
                self.with_foca("load", |foca, _| foca.add_broadcast(&bytes).map(drop));
            }
            Err(error) => debug!(error = &error as &dyn Error, "load cannot be written"),
        }
    }

    /// Knocks at every seed and every known member that is not alive.
    fn rejoin(&mut self) {
        let alive = self.foca.iter_members().filter(|member| member.state() == foca::State::Alive);
        let alive: BTreeSet<SocketAddr> = alive.map(|member| member.id().address).collect();
        let known = self.foca.iter_membership_state().map(|member| member.id().clone());
        let seeds = self.seeds.iter().map(|seed| Identity::unknown(*seed));
        let mut missing: BTreeMap<SocketAddr, Identity> = BTreeMap::new();
        for identity in known.chain(seeds).filter(|identity| !alive.contains(&identity.address)) {
            missing.entry(identity.address).or_insert(identity);
        }
        let mut missing: Vec<Identity> = missing.into_values().take(MEMBERS_MAX).collect();
        missing.shuffle(&mut rand::rng());
        for identity in missing {
            self.with_foca("announce", |foca, wishes| foca.announce(identity.clone(), wishes));
            self.begin_exchange(identity);
        }
    }

    fn sync(&mut self) {
        let active: Vec<Identity> = self.foca.iter_members().map(|member| member.id().clone()).collect();
        if let Some(member) = active.choose(&mut rand::rng()) {
            self.begin_exchange(member.clone());
        }
    }

    fn begin_exchange(&mut self, with: Identity) {
        let address = with.address;
        if self.exchanging.len() >= EXCHANGES_MAX || !self.exchanging.insert(address) {
            return;
        }
        let request = self.tell(with);
        let Shared { sealer, tally, events, .. } = self.shared.clone();
        // Bounded by the exchange's own deadline; the driver's end closes the inbox, which ends it too.
        self.shared.tasks.spawn(async move {
            let asked = tokio::select! {
                () = events.closed() => return,
                asked = exchange::ask(address, &request, &sealer, &tally) => asked,
            };
            let exchange =
                asked.inspect_err(|error| debug!(%address, error = error as &dyn Error, "gossip exchange failed")).ok();
            // The driver is gone when the node stops.
            _ = events.send(Event::Answered { address, exchange }).await;
        });
    }

    /// Shows the members, and asks those that just became suspect over TCP, before the suspicion ends.
    fn publish(&mut self) {
        let before = Arc::clone(&self.view.borrow());
        let after = self.loads.with(|loads| {
            view(&before, self.foca.identity(), self.foca.iter_membership_state(), loads, Instant::now())
        });
        if before == after {
            return;
        }
        let state = |members: &Members, node| members.iter().find(|hint| hint.node == node).map(|hint| hint.state);
        for hint in after.iter() {
            let was = state(&before, hint.node);
            if was != Some(hint.state) {
                info!(member = %hint.node, address = %hint.address, state = ?hint.state, "gossip sees a member change");
            }
        }
        self.view.send_replace(Arc::clone(&after));
        let suspects: Vec<Identity> = after
            .iter()
            .filter(|hint| {
                hint.state == MemberState::Suspect && state(&before, hint.node) != Some(MemberState::Suspect)
            })
            .filter_map(|hint| self.foca.iter_members().map(Member::id).find(|id| id.address == hint.address).cloned())
            .collect();
        for suspect in suspects {
            self.begin_exchange(suspect);
        }
    }
}

/// Waits for a timer; for ever without one.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
