# The commands of this project; `make help` lists them. Each one sets up what it needs.

SHELL := /bin/sh
CARGO ?= cargo
# What comes after `podlock demo`.
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test compose-test lint fmt clean cargo

help: ## List these commands
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "make %-12s  %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: cargo ## See it work on a private PostgreSQL server; ARGS="..." goes to the program
	@sh scripts/ensure-postgres.sh
	$(CARGO) build --features cli --bin podlock
	@"$${CARGO_TARGET_DIR:-target}/debug/podlock" demo $(ARGS)

# The documentation's tests come first: cargo would run them last, and end with their timing instead of a summary.
test: cargo ## Run all tests, on private PostgreSQL servers and pgbouncers
	@sh scripts/ensure-postgres.sh
	@sh scripts/ensure-pgbouncer.sh
	$(CARGO) test --all-features --doc
	$(CARGO) test --all-features --lib --bins --tests -- --test-threads=6

compose-test: cargo ## Kill and stop pods that run in containers; needs a Docker engine, and no registry
	@CARGO="$(CARGO)" sh scripts/compose-test.sh

lint: cargo ## Check format, lints and documentation; changes nothing
	@$(CARGO) fmt --version >/dev/null 2>&1 || \
		{ echo 'lint: rustfmt is missing: rustup component add rustfmt' >&2; exit 1; }
	@$(CARGO) clippy --version >/dev/null 2>&1 || \
		{ echo 'lint: clippy is missing: rustup component add clippy' >&2; exit 1; }
	$(CARGO) fmt --check
	$(CARGO) clippy --all-features --all-targets -- -D warnings
	$(CARGO) clippy --no-default-features --lib -- -D warnings
	$(CARGO) clippy --no-default-features --features http --lib -- -D warnings
	$(CARGO) clippy --no-default-features --features throwaway --lib -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --all-features

fmt: cargo ## Format the code
	@$(CARGO) fmt --version >/dev/null 2>&1 || \
		{ echo 'fmt: rustfmt is missing: rustup component add rustfmt' >&2; exit 1; }
	$(CARGO) fmt

clean: cargo ## Remove what was built
	$(CARGO) clean

cargo:
	@command -v $(CARGO) >/dev/null 2>&1 || \
		{ echo 'no cargo: install a Rust toolchain, see https://rustup.rs' >&2; exit 1; }
