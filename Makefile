# vmrun's two commands for a fresh Debian 12 with Go, as root or with sudo:
# `make demo` and `make test`. Both install by apt what is missing, and work
# offline once it is there.

SHELL := /bin/bash
GO ?= go
CACHE ?= $(or $(VMRUN_CACHE_DIR),/var/cache/vmrun)
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo -E env "PATH=$(PATH)")
export VMRUN_CACHE_DIR := $(CACHE)

.PHONY: build demo test check unit integration fuzz bench soak clean

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags=-s -o vmrun ./cmd/vmrun

demo:
	scripts/setup demo
	$(MAKE) --no-print-directory build
	$(AS_ROOT) scripts/demo ./vmrun

test:
	scripts/setup test
	$(MAKE) --no-print-directory check unit integration

# What needs no privilege and no VM.
check:
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); \
	if [ -n "$$unformatted" ]; then echo "gofmt -w: $$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

# Every package's own tests. Some make namespaces of their own: see TESTING in
# ARCHITECTURE.md.
unit:
	$(AS_ROOT) env VMRUN_TEST_MUST="$(VMRUN_TEST_MUST)" $(GO) test -race $$($(GO) list ./... | grep -v /integration)

# Real kernels, real QEMU, real guests.
integration:
	$(AS_ROOT) env VMRUN_TEST_MUST="$(VMRUN_TEST_MUST)" $(GO) test -count=1 -timeout 20m ./integration/...

FUZZTIME ?= 30s
fuzz:
	@for package in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$package | grep ^Fuzz); do \
			echo "$$package $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$package || exit 1; \
		done; \
	done

bench:
	scripts/setup test
	$(MAKE) --no-print-directory build
	$(AS_ROOT) scripts/bench ./vmrun

clean:
	rm -f vmrun
