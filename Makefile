# vmrun's two commands for a fresh Debian 12 with Go, as root or with sudo:
# `make demo` and `make test`. Both install by apt what is missing, and work
# offline once it is there.

SHELL := /bin/bash
GO ?= go
CACHE ?= $(or $(VMRUN_CACHE_DIR),/var/cache/vmrun)
REPORT ?= $(CACHE)/report
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo -E env "PATH=$(PATH)")
export VMRUN_CACHE_DIR := $(CACHE)

.PHONY: build demo test check unit integration fuzz bench soak docs clean

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
	@unformatted=$$(gofmt -l .); \
	if [ -n "$$unformatted" ]; then echo "gofmt -w: $$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) vet -tags vmrun_fault ./netsetup
	$(GO) tool staticcheck ./...

# Every package's own tests. Some make namespaces of their own: see TESTING in
# ARCHITECTURE.md. Those mostly wait, so that more run at once than there are
# processors.
unit:
	$(AS_ROOT) env VMRUN_TEST_MUST="$(VMRUN_TEST_MUST)" $(GO) test -race -timeout 20m -parallel $$((2 * $$(nproc))) $$($(GO) list ./... | grep -v /integration)

# Real kernels, real QEMU, real guests. One more test runs at once than there are
# processors: half of the time each waits, for DHCP that does not come, say.
integration:
	$(AS_ROOT) env VMRUN_TEST_MUST="$(VMRUN_TEST_MUST)" VMRUN_TEST_REPORT="$(REPORT)" \
		$(GO) test -count=1 -timeout 60m -parallel $$(($$(nproc) + 1)) ./integration/...
	@[ ! -e "$(REPORT)/everystep.txt" ] || grep ' cases of ' "$(REPORT)/everystep.txt"

# The proofs in full, of which the tests above do a part.
SOAK ?= EveryStepKilled|Storm|ManyNetworks|TwoInstances|OutlivesKeeper|Strangers|DamagedState|DHCPLoad|Leaks|Networkd|NetworkManager|Docker|RulesComeBack|Firewalld|HoldAdopted|RunRightAfterKill|ReusedProcessID|Kill|Signals
soak:
	scripts/setup test
	scripts/setup docker
	$(AS_ROOT) env VMRUN_TEST_LONG=1 VMRUN_TEST_MUST="$(VMRUN_TEST_MUST)" VMRUN_TEST_REPORT="$(REPORT)" \
		$(GO) test -count=1 -v -timeout 4h -p 1 -run '$(SOAK)' ./netsetup ./integration
	@[ ! -e "$(REPORT)/everystep.txt" ] || grep ' cases of ' "$(REPORT)/everystep.txt"

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

# docs/cli.md and docs/man, from the commands themselves.
docs:
	$(GO) test ./cmd/vmrun -run '^TestDocsGenerated$$' -update

clean:
	rm -f vmrun
