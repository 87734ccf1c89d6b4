//! Which nodes' workers the executor may count on.

use quorate_app::executor::Workers;

use crate::loops::observe::Views;
use crate::loops::worker;

/// The workers of the members that this node hears.
pub struct HeardWorkers(pub Views);

impl Workers for HeardWorkers {
    fn alive(&self) -> Vec<String> {
        let views = self.0.all();
        let heard = views.iter().filter(|(_, view)| view.is_alive());
        heard.map(|(node, _)| worker::name(*node)).collect()
    }
}
