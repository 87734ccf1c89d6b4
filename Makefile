# Both commands set up what they need themselves, as root on Debian 12 with a Rust toolchain.
# QUORATE_VENV: where the REST clients from PyPI are installed.
QUORATE_VENV ?= $(CURDIR)/.venv
export QUORATE_VENV

.PHONY: demo test bench sim packages clients

demo: packages
	cargo build --release --locked --bin quorate
	cargo run --release --locked --quiet --bin quorate -- demo

test: packages clients
	cargo build --locked --bin quorate
	cargo test --workspace --locked

# Figures, one JSON object a line. QUORATE_ROUNDS: how often each story is played.
bench: packages
	cargo build --release --locked --bin quorate --bin bench
	cargo run --release --locked --quiet --bin bench

# Whole clusters under faults, many more than in `make test`; a failure prints its seed.
sim:
	QUORATE_SIM_SEEDS=20000 cargo test --release --locked -p quorate-core --test sim_failover -- --nocapture

packages:
	@.ci/packages

# The unmodified clients of the original, as its users have them.
clients: packages
	@.ci/clients "$(QUORATE_VENV)"
