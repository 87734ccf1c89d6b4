//! Which nodes' workers the executor may count on.

use std::time::Duration;

use quorate_app::executor::Workers;

use crate::loops::observe::Views;
use crate::loops::worker;

/// A member that answered within this is alive.
const ALIVE: Duration = Duration::from_secs(2);

/// The workers of the members that this node hears.
pub struct HeardWorkers(pub Views);

impl Workers for HeardWorkers {
    fn alive(&self) -> Vec<String> {
        let views = self.0.all();
        let heard = views.iter().filter(|(_, view)| view.at.elapsed() < ALIVE && !view.refused);
        heard.map(|(node, _)| worker::name(*node)).collect()
    }
}
