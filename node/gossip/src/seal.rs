//! Sealing: XChaCha20-Poly1305 with a random nonce of 24 bytes, long enough to need no counter across restarts.
//!
//! A sealed message is `version (1) | nonce (24) | ciphertext and tag`. Cluster id, version and channel are
//! authenticated but not sent.

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use rand::Rng;
use sha2::{Digest, Sha256};

/// The format of sealed messages.
const VERSION: u8 = 1;
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;

/// What sealing adds to a message, in bytes.
pub(crate) const OVERHEAD_BYTES: usize = 1 + NONCE_BYTES + TAG_BYTES;

/// The cluster's gossip key. Not printable.
#[derive(Clone)]
pub struct GossipKey([u8; 32]);

impl GossipKey {
    /// Takes the 32 bytes that the cluster agreed on.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

/// The way a message travels; a message of one way does not open as another.
#[derive(Clone, Copy)]
pub(crate) enum Channel<'a> {
    Packet,
    Request,
    /// The answer to the sealed request that began with these bytes.
    Answer(&'a [u8]),
}

/// Seals and opens.
pub(crate) struct Sealer {
    cipher: XChaCha20Poly1305,
    cluster: [u8; 32],
}

impl Sealer {
    pub(crate) fn new(key: &GossipKey, cluster_id: &str) -> Self {
        Self { cipher: XChaCha20Poly1305::new((&key.0).into()), cluster: Sha256::digest(cluster_id.as_bytes()).into() }
    }

    fn context(&self, channel: Channel<'_>) -> Vec<u8> {
        let mut context = b"quorate gossip ".to_vec();
        context.push(VERSION);
        context.extend_from_slice(&self.cluster);
        match channel {
            Channel::Packet => context.push(b'P'),
            Channel::Request => context.push(b'R'),
            Channel::Answer(request) => {
                context.push(b'A');
                context.extend_from_slice(head(request));
            }
        }
        context
    }

    pub(crate) fn seal(&self, channel: Channel<'_>, message: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE_BYTES];
        rand::rng().fill(&mut nonce);
        let payload = Payload { msg: message, aad: &self.context(channel) };
        let sealed = self
            .cipher
            .encrypt(XNonce::from_slice(&nonce), payload)
            .expect("a message is far below the cipher's limit of 256 GiB");
        [&[VERSION], &nonce[..], &sealed].concat()
    }

    /// `None`: of another key, cluster, channel or format, or damaged.
    pub(crate) fn open(&self, channel: Channel<'_>, sealed: &[u8]) -> Option<Vec<u8>> {
        let (version, rest) = sealed.split_first()?;
        if *version != VERSION || rest.len() < NONCE_BYTES + TAG_BYTES {
            return None;
        }
        let (nonce, text) = rest.split_at(NONCE_BYTES);
        let payload = Payload { msg: text, aad: &self.context(channel) };
        self.cipher.decrypt(XNonce::from_slice(nonce), payload).ok()
    }
}

/// Version and nonce: what tells one sealed message from all others.
fn head(sealed: &[u8]) -> &[u8] {
    &sealed[..sealed.len().min(1 + NONCE_BYTES)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_cluster_and_channel_open() {
        let key = GossipKey::new([7; 32]);
        let sealer = Sealer::new(&key, "cluster");
        let sealed = sealer.seal(Channel::Packet, b"hello");
        assert_eq!(sealed.len(), 5 + OVERHEAD_BYTES);
        assert_eq!(sealer.open(Channel::Packet, &sealed).as_deref(), Some(&b"hello"[..]));
        assert!(sealer.open(Channel::Request, &sealed).is_none());
        assert!(Sealer::new(&key, "other").open(Channel::Packet, &sealed).is_none());
        assert!(Sealer::new(&GossipKey::new([8; 32]), "cluster").open(Channel::Packet, &sealed).is_none());
        for position in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[position] ^= 1;
            assert!(sealer.open(Channel::Packet, &damaged).is_none(), "byte {position} is not protected");
            assert!(sealer.open(Channel::Packet, &sealed[..position]).is_none());
        }
        assert_ne!(sealer.seal(Channel::Packet, b"hello"), sealed, "each message has its own nonce");
    }

    #[test]
    fn an_answer_opens_for_its_own_request_only() {
        let sealer = Sealer::new(&GossipKey::new([7; 32]), "cluster");
        let (one, two) = (sealer.seal(Channel::Request, b"?"), sealer.seal(Channel::Request, b"?"));
        let answer = sealer.seal(Channel::Answer(&one), b"!");
        assert!(sealer.open(Channel::Answer(&one), &answer).is_some());
        assert!(sealer.open(Channel::Answer(&two), &answer).is_none());
    }
}
