//! Slow hashes of passwords, and a short memory of the ones that were right.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use argon2::password_hash::SaltString;
use argon2::{Argon2, PasswordHash, PasswordHasher, PasswordVerifier};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use crate::{AppError, Code};

/// How long a verified password is remembered. A changed password is not accepted for that long: the remembered entry
/// is bound to the stored hash.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);
/// How many are remembered.
const REMEMBERED_MAX: usize = 1024;
/// Hashes computed at once.
const AT_ONCE: usize = 2;
/// Logins that may wait for one.
const WAITING_MAX: usize = 64;
/// What an unknown user's password is compared with, so that the time of the answer tells nothing.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5bm9ib2R5$q1BPTpsf7JyhBDYhDn0uKLTTKIn0gXaLHeaT6dS9vWc";

/// Computes and compares hashes off the asynchronous threads.
pub struct Passwords {
    /// Random per process: what we remember is of no use elsewhere.
    salt: [u8; 32],
    known: Mutex<HashMap<[u8; 32], Known>>,
    running: Semaphore,
    waiting: Semaphore,
}

struct Known {
    hash: String,
    until: Instant,
}

impl Passwords {
    pub(crate) fn new() -> Self {
        Self {
            salt: rand::random(),
            known: Mutex::default(),
            running: Semaphore::new(AT_ONCE),
            waiting: Semaphore::new(WAITING_MAX),
        }
    }

    /// Whether this password was found right a short time ago, for this very hash.
    pub(crate) fn is_known(&self, username: &str, password: &str, hash: &str) -> bool {
        let known = self.known.lock().expect("nobody panics while holding it");
        known
            .get(&self.digest(username, password))
            .is_some_and(|known| known.hash == hash && Instant::now() < known.until)
    }

    /// Compares a password with a hash; `None`: with nobody's, at the same cost.
    ///
    /// # Errors
    /// `no_active_node_error` when too many logins wait.
    pub(crate) async fn verify(&self, username: &str, password: &str, hash: Option<&str>) -> Result<bool, AppError> {
        let given = password.to_owned();
        let stored = hash.unwrap_or(NOBODY).to_owned();
        let is_right = self
            .run(move || {
                PasswordHash::new(&stored)
                    .is_ok_and(|stored| Argon2::default().verify_password(given.as_bytes(), &stored).is_ok())
            })
            .await?;
        let Some(hash) = hash.filter(|_| is_right) else { return Ok(false) };
        let mut known = self.known.lock().expect("nobody panics while holding it");
        let now = Instant::now();
        if known.len() >= REMEMBERED_MAX {
            known.retain(|_, known| now < known.until);
        }
        if known.len() < REMEMBERED_MAX {
            let entry = Known { hash: hash.to_owned(), until: now + REMEMBERED_FOR };
            known.insert(self.digest(username, password), entry);
        }
        Ok(true)
    }

    /// The hash to store, as PHC text.
    ///
    /// # Errors
    /// `no_active_node_error` when too many logins wait.
    pub(crate) async fn hash(&self, password: &str) -> Result<String, AppError> {
        let password = password.to_owned();
        self.run(move || {
            let salt = SaltString::encode_b64(&rand::random::<[u8; 16]>()).expect("16 bytes are a salt");
            let hash = Argon2::default().hash_password(password.as_bytes(), &salt);
            hash.expect("passwords are shorter than 4 GiB").to_string()
        })
        .await
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, AppError> {
        let too_many = || AppError::new(Code::NoActiveNode, "too many logins at once");
        let _waiting = self.waiting.try_acquire().map_err(|_| too_many())?;
        let _running = self.running.acquire().await.map_err(|_| too_many())?;
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| AppError::caused(Code::Internal, "hashing a password failed", error))
    }

    fn digest(&self, username: &str, password: &str) -> [u8; 32] {
        let length = u64::try_from(username.len()).unwrap_or(u64::MAX).to_be_bytes();
        let parts: [&[u8]; 4] = [&self.salt, &length, username.as_bytes(), password.as_bytes()];
        parts.into_iter().fold(Sha256::new(), Sha256::chain_update).finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_a_hash_that_costs_what_others_cost() {
        let nobody = PasswordHash::new(NOBODY).unwrap();
        let params = argon2::Params::try_from(&nobody).unwrap();
        let real = Argon2::default();
        assert_eq!(nobody.algorithm, argon2::Algorithm::default().ident());
        assert_eq!((params.m_cost(), params.t_cost()), (real.params().m_cost(), real.params().t_cost()));
    }

    #[tokio::test]
    async fn a_right_password_is_remembered_for_its_hash_only() {
        let passwords = Passwords::new();
        let hash = passwords.hash("secret").await.unwrap();
        assert!(!passwords.verify("u", "wrong", Some(&hash)).await.unwrap());
        assert!(!passwords.is_known("u", "secret", &hash));
        assert!(passwords.verify("u", "secret", Some(&hash)).await.unwrap());
        assert!(passwords.is_known("u", "secret", &hash));
        assert!(!passwords.is_known("u", "wrong", &hash));
        assert!(!passwords.is_known("v", "secret", &hash));
        let changed = passwords.hash("secret").await.unwrap();
        assert!(!passwords.is_known("u", "secret", &changed));
        assert!(!passwords.verify("x", "secret", None).await.unwrap());
    }
}
