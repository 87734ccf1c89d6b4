//! RabbitMQ's form of a stored password: base64 of a four-byte salt and the SHA-256 of salt and password.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

/// RabbitMQ's name of this form.
pub(crate) const ALGORITHM: &str = "rabbit_password_hashing_sha256";
const SALT_BYTES: usize = 4;

/// Hashes with a new salt.
pub(crate) fn hash(password: &str) -> String {
    with_salt(rand::random(), password)
}

/// Whether a stored hash is of this password.
pub(crate) fn matches(stored: &str, password: &str) -> bool {
    let Ok(bytes) = STANDARD.decode(stored) else { return false };
    let Some(salt) = bytes.first_chunk::<SALT_BYTES>() else { return false };
    with_salt(*salt, password) == stored
}

fn with_salt(salt: [u8; SALT_BYTES], password: &str) -> String {
    let mut bytes = salt.to_vec();
    bytes.extend_from_slice(&Sha256::new().chain_update(salt).chain_update(password).finalize());
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_example_holds() {
        // From RabbitMQ's guide on passwords: salt 908D C60A, password "test12".
        assert_eq!(with_salt([0x90, 0x8d, 0xc6, 0x0a], "test12"), "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR");
    }

    #[test]
    fn only_the_same_password_matches() {
        let stored = hash("one");
        assert!(matches(&stored, "one"));
        assert!(!matches(&stored, "two"));
        assert!(!matches("", "one"));
        assert_ne!(stored, hash("one"), "salted");
    }
}
