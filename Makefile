# Both commands set up what they need themselves, as root on Debian 12 with a Rust toolchain.
# QUORATE_VENV: where the REST clients from PyPI are installed.
QUORATE_VENV ?= $(CURDIR)/.venv
export QUORATE_VENV

.PHONY: demo test bench sim packages clients

demo: packages
	cargo build --release --locked --bin quorate
	cargo run --release --locked --quiet --bin quorate -- demo

test: packages clients
	cargo test --workspace --locked

packages:
	@.ci/packages

# The unmodified clients of the original, as its users have them.
clients: packages
	@.ci/clients "$(QUORATE_VENV)"
