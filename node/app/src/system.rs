//! How the cluster is, as its users see it.

use crate::ports::{ClusterStatus, MemberStatus};
use crate::{Actor, App, AppError, Login, Permission};

/// Use cases around the cluster itself.
pub struct System<'a>(pub(crate) &'a App);

/// How well something works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// All of it.
    Ok,
    /// Enough of it.
    Degraded,
    /// Not enough of it.
    Fail,
}

impl Health {
    /// The spelling in the REST API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Degraded => "Degraded",
            Self::Fail => "Fail",
        }
    }
}

/// What each node of the cluster does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// REST, workflows.
    Manager,
    /// PostgreSQL.
    Database,
    /// RabbitMQ.
    Broker,
}

impl Duty {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Manager, Self::Database, Self::Broker];

    /// Why a node does not do it; `None`: it does.
    #[must_use]
    pub fn fault(self, member: &MemberStatus) -> Option<&str> {
        match self {
            Self::Manager => member.manager_fault.as_deref(),
            Self::Database => member.database_fault.as_deref(),
            Self::Broker => member.broker_fault.as_deref(),
        }
    }

    /// How well the cluster as a whole does it. A write needs a majority of the nodes, so all but the broker do; for
    /// the broker the active node's counts.
    #[must_use]
    pub fn health(self, cluster: &ClusterStatus) -> Health {
        let works = |member: &&MemberStatus| self.fault(member).is_none();
        let working = cluster.members.iter().filter(works).count();
        let enough = match self {
            Self::Manager | Self::Database => working * 2 > cluster.members.len(),
            Self::Broker => cluster.members.iter().filter(works).any(|member| member.is_active),
        };
        match (working == cluster.members.len(), enough) {
            (true, true) => Health::Ok,
            (_, true) => Health::Degraded,
            (_, false) => Health::Fail,
        }
    }
}

impl System<'_> {
    /// The cluster, for whoever has `permission` in a tenant: the paths that show parts of it have one each.
    ///
    /// # Errors
    /// `forbidden_error`.
    pub fn cluster_in_tenant(&self, actor: &Actor, permission: Permission) -> Result<ClusterStatus, AppError> {
        actor.require(permission)?;
        Ok(self.0.ports().cluster.status())
    }

    /// The same for what belongs to no tenant.
    ///
    /// # Errors
    /// `forbidden_error`.
    pub fn cluster(&self, login: &Login, permission: Permission) -> Result<ClusterStatus, AppError> {
        login.require(permission)?;
        Ok(self.0.ports().cluster.status())
    }

    /// Whether the database answers; for callers who have not logged in.
    ///
    /// # Errors
    /// `no_active_node_error`.
    pub async fn check(&self) -> Result<(), AppError> {
        let mut reader = self.0.store().read().await?;
        quorate_store::tenants::find(&mut reader, crate::DEFAULT_TENANT).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use quorate_types::NodeId;

    use super::*;

    fn cluster(faults: [bool; 3]) -> ClusterStatus {
        let member = |(at, fault): (usize, bool)| {
            let id = at as u64 + 1;
            let fault = fault.then(|| "it is silent".to_owned());
            MemberStatus {
                id: NodeId(id),
                name: format!("node-{id}"),
                address: [127, 0, 33, 1].into(),
                is_active: id == 1,
                manager_fault: fault.clone(),
                database_fault: fault.clone(),
                broker_fault: fault,
            }
        };
        let members = faults.into_iter().enumerate().map(member).collect();
        ClusterStatus { cluster_address: None, authority_pem: String::new(), broker_port: 5671, members }
    }

    #[test]
    fn a_majority_is_enough_and_the_broker_needs_the_active_node() {
        let health = |faults| Duty::ALL.map(|duty| duty.health(&cluster(faults)));
        assert_eq!(health([false; 3]), [Health::Ok; 3]);
        assert_eq!(health([false, false, true]), [Health::Degraded; 3]);
        assert_eq!(health([true, false, false]), [Health::Degraded, Health::Degraded, Health::Fail]);
        assert_eq!(health([false, true, true]), [Health::Fail, Health::Fail, Health::Degraded]);
    }
}
