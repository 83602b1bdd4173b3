# The commands of this project; `make help` lists them. Each one sets up what it needs.

SHELL := /bin/sh
CARGO ?= cargo
# What comes after `podlock demo`.
ARGS ?=
# What `make chaos` plays, and how often `make faults` does.
SEED ?= $(shell date +%s)
MINUTES ?= 10
ROUNDS ?= 5
# What `make deny` checks; "advisories" fetches the advisory database.
CHECKS ?= advisories bans licenses sources
TOOLS = $${CARGO_TARGET_DIR:-target}/tools
HACK = PATH="$(TOOLS)/bin:$$PATH" $(CARGO) hack --feature-powerset --exclude-features default

.DEFAULT_GOAL := help
.PHONY: help demo bench-claim bench-detect bench-fleet bench-peers bench-runs bench-stream bench-workers test test-quick model chaos soak faults chaos-programs compose-test lint fmt docs costs features msrv deny package clean cargo hack

help: ## List these commands
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "make %-12s  %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: cargo ## See it work on a private PostgreSQL server; ARGS="..." goes to the program
	@sh scripts/ensure-postgres.sh
	$(CARGO) build --features cli --bin podlock
	@"$${CARGO_TARGET_DIR:-target}/debug/podlock" demo $(ARGS)

bench-claim: cargo ## Measure how fast survivors claim what a dead pod leaves, beside bare SQL; ARGS="--orphans 10000"
	@sh scripts/ensure-postgres.sh
	$(CARGO) bench --features cli --bench claim -- $(ARGS)

bench-detect: cargo ## Measure how fast deaths are noticed, beside a floor; ARGS="--kills 200 --idle 600"
	@sh scripts/ensure-postgres.sh
	$(CARGO) bench --features cli --bench detect -- $(ARGS)

bench-fleet: cargo ## Measure what 10 to 500 pods cost their database; ARGS="--pods 10,200 --statements"
	@sh scripts/ensure-postgres.sh
	$(CARGO) bench --features cli --bench fleet -- $(ARGS)

bench-runs: cargo ## Measure how many runs a second start and end, beside floors; ARGS="--phases trivial,checkpoints --seconds 5 --fsync on"
	@sh scripts/ensure-postgres.sh
	$(CARGO) bench --features cli --bench runs -- $(ARGS)

bench-peers: cargo ## Measure other job queues on PostgreSQL beside podlock; ARGS="--jobs 5000 --only podlock,graphile --limit 90"
	@sh scripts/ensure-postgres.sh
	-@sh scripts/ensure-peers.sh
	CARGO_TARGET_DIR="$${CARGO_TARGET_DIR:-target}/peers" $(CARGO) run --release --locked --manifest-path benches/peers/Cargo.toml -- \
		--python "$$(sh scripts/ensure-peers.sh --print)" $(ARGS)

bench-stream: cargo ## Measure how fast chunks pass from pod to pod, beside a floor; ARGS="--chunks 200000 --rounds 5"
	@sh scripts/ensure-postgres.sh
	$(CARGO) bench --features cli --bench stream -- $(ARGS)

bench-workers: cargo ## Measure the registry of workers, beside floors; ARGS="--workers 1000 --gap 100ms"
	@sh scripts/ensure-postgres.sh
	$(CARGO) bench --features cli --bench workers -- $(ARGS)

test: cargo chaos-programs ## Run all tests, on private PostgreSQL servers, pgbouncers and nginx; its last lines are one summary
	@sh scripts/ensure-daemon.sh pgbouncer pgbouncer
	@sh scripts/ensure-daemon.sh nginx nginx-light
	-@sh scripts/ensure-schemathesis.sh
	-@sh scripts/ensure-program.sh valgrind valgrind
	@CARGO="$(CARGO)" sh scripts/test.sh

test-quick: cargo ## Run the tests of the library, the documentation and the model, and those on PostgreSQL in one process
	@sh scripts/ensure-postgres.sh
	@sh scripts/ensure-daemon.sh pgbouncer pgbouncer
	@sh scripts/ensure-daemon.sh nginx nginx-light
	@CARGO="$(CARGO)" sh scripts/test.sh lib doc model it

model: cargo ## Explore the larger configurations of the protocol's model (docs/model.md), optimised
	$(CARGO) test --release --test model -- --include-ignored --nocapture --test-threads=1

chaos: cargo chaos-programs ## Faults at random on real pods, for a seed and a time; SEED=7 MINUTES=10
	CHAOS_SEED=$(SEED) CHAOS_MINUTES=$(MINUTES) $(CARGO) test --all-features --test chaos

soak: cargo ## Let pods write samples of themselves for an hour, and measure it; MINUTES=60
	@sh scripts/ensure-postgres.sh
	SOAK_MINUTES=$(if $(filter command line environment,$(origin MINUTES)),$(MINUTES),60) $(CARGO) test --release --all-features --test it \
		history::samples::soak -- --nocapture

faults: cargo chaos-programs ## Play every fault of docs/faults.md, and renew its figures; ROUNDS=5
	PODLOCK_RENEW_DOCS=1 CHAOS_ROUNDS=$(ROUNDS) $(CARGO) test --all-features --test chaos

compose-test: cargo ## Kill and stop pods that run in containers; needs a Docker engine, and no registry
	@CARGO="$(CARGO)" sh scripts/compose-test.sh

lint: cargo hack ## Check format, lints and documentation; changes nothing
	@$(CARGO) fmt --version >/dev/null 2>&1 || \
		{ echo 'lint: rustfmt is missing: rustup component add rustfmt' >&2; exit 1; }
	@$(CARGO) clippy --version >/dev/null 2>&1 || \
		{ echo 'lint: clippy is missing: rustup component add clippy' >&2; exit 1; }
	$(CARGO) fmt --check
	$(CARGO) clippy --all-features --all-targets -- -D warnings
	$(HACK) clippy --lib --bins -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --all-features

fmt: cargo ## Format the code
	@$(CARGO) fmt --version >/dev/null 2>&1 || \
		{ echo 'fmt: rustfmt is missing: rustup component add rustfmt' >&2; exit 1; }
	$(CARGO) fmt

docs: cargo ## Renew the pages that are made from the code (settings, metrics, errors, connections, model); the tests compare them
	PODLOCK_RENEW_DOCS=1 $(CARGO) test --all-features --lib the_page_on
	PODLOCK_RENEW_DOCS=1 $(CARGO) test --all-features --test model the_page_on

costs: cargo ## Count statements, round trips, rows and instructions again, and write the counts into docs/costs.md
	@sh scripts/ensure-postgres.sh
	-@sh scripts/ensure-program.sh valgrind valgrind
	PODLOCK_RENEW_DOCS=1 $(CARGO) test --all-features --test costs

features: cargo hack ## Compile each combination of features, tests and examples included
	$(HACK) check --all-targets

msrv: cargo ## Check that rust-version in Cargo.toml is no lower than what a dependency needs
	$(CARGO) test --features cli --test api rust_version

deny: cargo ## Check licences, sources and advisories of the dependencies (deny.toml)
	@test -x "$(TOOLS)/bin/cargo-deny" || $(CARGO) install --locked --root "$(TOOLS)" cargo-deny
	"$(TOOLS)/bin/cargo-deny" --all-features check $(CHECKS)

package: cargo ## Build what would be published, from the package itself; publishes nothing
	$(CARGO) publish --dry-run

clean: cargo ## Remove what was built
	$(CARGO) clean

# What some faults need; where one of them cannot be installed, these are skipped, with the reason, and counted.
chaos-programs:
	@sh scripts/ensure-postgres.sh
	-@sh scripts/ensure-daemon.sh pgbouncer pgbouncer
	-@sh scripts/ensure-daemon.sh etcd etcd-server
	-@sh scripts/ensure-daemon.sh patroni patroni
	-@sh scripts/ensure-program.sh ip iproute2
	-@sh scripts/ensure-program.sh nsenter util-linux

hack: cargo
	@test -x "$(TOOLS)/bin/cargo-hack" || $(CARGO) install --locked --root "$(TOOLS)" cargo-hack

cargo:
	@command -v $(CARGO) >/dev/null 2>&1 || \
		{ echo 'no cargo: install a Rust toolchain, see https://rustup.rs' >&2; exit 1; }
