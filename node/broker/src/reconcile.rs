//! The difference between what the broker holds and what it shall hold.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::json;

use crate::desired::{Desired, Permission, UserDef};
use crate::error::BrokerError;
use crate::management::Management;
use crate::password;

/// The virtual host that is always there.
const ROOT: &str = "/";

/// How many virtual hosts, users and permissions were touched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// That were missing.
    pub created: usize,
    /// That were different.
    pub changed: usize,
    /// That were not desired.
    pub deleted: usize,
}

#[derive(Deserialize)]
struct Vhost {
    name: String,
}

#[derive(Deserialize)]
struct User {
    name: String,
    #[serde(default)]
    password_hash: String,
    #[serde(default)]
    hashing_algorithm: String,
    tags: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Granted {
    user: String,
    vhost: String,
    configure: String,
    write: String,
    read: String,
}

pub(crate) async fn reconcile(
    management: &Management,
    admin: &str,
    desired: &Desired,
) -> Result<Reconciled, BrokerError> {
    let vhosts: BTreeSet<&str> = desired.vhosts.iter().map(|vhost| vhost.name.as_str()).chain([ROOT]).collect();
    let wished = wished_permissions(admin, &vhosts, desired)?;
    let mut done = Reconciled::default();
    // Virtual hosts take RabbitMQ a while each. Whoever needs none of them does not wait for hundreds.
    let rootlings: Vec<&UserDef> = desired.users.iter().filter(|user| needs_only_root(user)).collect();
    put_users(management, &rootlings, &mut done).await?;
    let theirs = wished.iter().filter(|((name, _), _)| rootlings.iter().any(|user| user.name == *name));
    let theirs = theirs.map(|(key, permission)| (key.clone(), permission.clone())).collect();
    put_permissions(management, &theirs, &mut done).await?;
    put_vhosts(management, &vhosts, &mut done).await?;
    put_users(management, &desired.users.iter().collect::<Vec<_>>(), &mut done).await?;
    put_permissions(management, &wished, &mut done).await?;
    revoke_rest(management, &wished, &mut done).await?;
    // Last, because everything above makes room for somebody who waits, and this does not.
    delete_rest(management, admin, &vhosts, &desired.users, &mut done).await?;
    Ok(done)
}

fn needs_only_root(user: &UserDef) -> bool {
    user.permissions.iter().all(|permission| permission.vhost == ROOT)
}

type Key = (String, String);

/// By user and virtual host.
fn wished_permissions(
    admin: &str,
    vhosts: &BTreeSet<&str>,
    desired: &Desired,
) -> Result<BTreeMap<Key, Permission>, BrokerError> {
    let mut wished = BTreeMap::new();
    for user in &desired.users {
        if user.name == admin {
            return Err(BrokerError::Reserved(user.name.clone()));
        }
        for permission in &user.permissions {
            if !vhosts.contains(permission.vhost.as_str()) {
                return Err(BrokerError::UnknownVhost { user: user.name.clone(), vhost: permission.vhost.clone() });
            }
            wished.insert((user.name.clone(), permission.vhost.clone()), permission.clone());
        }
    }
    for vhost in vhosts {
        wished.insert((admin.to_owned(), (*vhost).to_owned()), Permission::everything(*vhost));
    }
    Ok(wished)
}

async fn put_vhosts(
    management: &Management,
    wished: &BTreeSet<&str>,
    done: &mut Reconciled,
) -> Result<(), BrokerError> {
    let there: Vec<Vhost> = management.list("vhosts").await?;
    for name in wished.iter().filter(|name| !there.iter().any(|vhost| vhost.name == **name)) {
        management.put(&["vhosts", name], &json!({})).await?;
        done.created += 1;
    }
    Ok(())
}

async fn put_users(management: &Management, wished: &[&UserDef], done: &mut Reconciled) -> Result<(), BrokerError> {
    let there: Vec<User> = management.list("users").await?;
    let there: BTreeMap<&str, &User> = there.iter().map(|user| (user.name.as_str(), user)).collect();
    for user in wished {
        let now = there.get(user.name.as_str());
        if now.is_some_and(|now| is_same(now, user)) {
            continue;
        }
        // Only the hash travels; the broker then need not, and does not, keep the password in any log.
        let body = json!({
            "password_hash": password::hash(&user.password),
            "hashing_algorithm": password::ALGORITHM,
            "tags": user.tags.join(","),
        });
        management.put(&["users", &user.name], &body).await?;
        *(if now.is_some() { &mut done.changed } else { &mut done.created }) += 1;
    }
    Ok(())
}

fn is_same(now: &User, wished: &UserDef) -> bool {
    now.hashing_algorithm == password::ALGORITHM
        && password::matches(&now.password_hash, &wished.password)
        && now.tags == wished.tags.iter().cloned().collect()
}

async fn put_permissions(
    management: &Management,
    wished: &BTreeMap<Key, Permission>,
    done: &mut Reconciled,
) -> Result<(), BrokerError> {
    let there = granted(management).await?;
    for ((user, vhost), permission) in wished {
        let now = there.get(&(user.clone(), vhost.clone()));
        if now == Some(permission) {
            continue;
        }
        let Permission { configure, write, read, .. } = permission;
        let body = json!({"configure": configure, "write": write, "read": read});
        management.put(&["permissions", vhost, user], &body).await?;
        *(if now.is_some() { &mut done.changed } else { &mut done.created }) += 1;
    }
    Ok(())
}

async fn granted(management: &Management) -> Result<BTreeMap<Key, Permission>, BrokerError> {
    let there: Vec<Granted> = management.list("permissions").await?;
    let there = there.into_iter().map(|granted| {
        let key = (granted.user, granted.vhost.clone());
        let Granted { vhost, configure, write, read, .. } = granted;
        (key, Permission { vhost, configure, write, read })
    });
    Ok(there.collect())
}

async fn revoke_rest(
    management: &Management,
    wished: &BTreeMap<Key, Permission>,
    done: &mut Reconciled,
) -> Result<(), BrokerError> {
    for (user, vhost) in granted(management).await?.keys().filter(|key| !wished.contains_key(*key)) {
        management.delete(&["permissions", vhost, user]).await?;
        done.deleted += 1;
    }
    Ok(())
}

async fn delete_rest(
    management: &Management,
    admin: &str,
    vhosts: &BTreeSet<&str>,
    wished: &[UserDef],
    done: &mut Reconciled,
) -> Result<(), BrokerError> {
    let users: Vec<User> = management.list("users").await?;
    for user in users.iter().filter(|user| user.name != admin && !wished.iter().any(|wish| wish.name == user.name)) {
        management.delete(&["users", &user.name]).await?;
        done.deleted += 1;
    }
    let there: Vec<Vhost> = management.list("vhosts").await?;
    for vhost in there.iter().filter(|vhost| !vhosts.contains(vhost.name.as_str())) {
        management.delete(&["vhosts", &vhost.name]).await?;
        done.deleted += 1;
    }
    Ok(())
}
