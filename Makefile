# NextStack. `make help` lists what there is to do.
SHELL := /bin/bash
GO ?= go
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
BUILD := $(GO) build -trimpath -ldflags "$(LDFLAGS)"
# The agent's driver of Ceph pools needs librbd, here and on the nodes: it is built in where librbd's headers are, unless CEPH=0.
CEPH ?= $(if $(wildcard /usr/include/rbd/librbd.h),1,0)
TAGS := $(if $(filter 1,$(CEPH)),ceph pacific)
GOTESTSUM := $(GO) run gotest.tools/gotestsum@v1.13.0
LINT := $(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOFUMPT := $(GO) run mvdan.cc/gofumpt@v0.12.0
SOURCES := $(shell find api workflows activities workers cli -name '*.go' -not -name '*_test.go' 2>/dev/null) go.mod go.sum
CROSS := amd64 arm64 riscv64 loong64

.DEFAULT_GOAL := help
.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: up down
up: deps build ## Set everything up: packages, build, a cloud in a sandbox (one node, or NODES=3; STORAGE=ceph), a VM that answers
	@STORAGE=$(STORAGE) deploy/dev/up.sh $(NODES)
down: ## Stop and remove everything that `make up` started
	@deploy/dev/down.sh

.PHONY: deps
deps: ## Install the system packages that building, running and testing need
	@deploy/dev/packages.sh

.PHONY: build
build: bin/gnext bin/nextstack ## Build bin/nextstack (control plane) and bin/gnext (CLI and node agent; CEPH=0: without Ceph)
bin/gnext: $(SOURCES) bin/.tags
	@echo "building $@ (CLI and agent, $(if $(TAGS),with,without) Ceph)"; CGO_ENABLED=1 $(BUILD) -tags "$(TAGS)" -o $@ ./cli/gnext
bin/.tags: FORCE
	@mkdir -p bin; echo "$(TAGS)" | cmp -s - $@ || echo "$(TAGS)" > $@
.PHONY: FORCE
FORCE:
bin/nextstack: $(SOURCES)
	@echo "building $@ (with etcd and Temporal embedded; the first time takes some minutes)"; CGO_ENABLED=0 $(BUILD) -o $@ ./cli/nextstack

.PHONY: cross
cross: ## Build the plain CLI, static, for every architecture
	@for a in $(CROSS); do CGO_ENABLED=0 GOOS=linux GOARCH=$$a $(BUILD) -o bin/cross/gnext-$$a ./cli/gnext || exit 1; done; ls -l bin/cross | awk 'NR>1 {printf "  %-16s %6.2f MB\n", $$9, $$5/1e6}'

.PHONY: test
test: deps ## Run every test, on real parts; says how many tests and fault points it ran
	@deploy/dev/test.sh
.PHONY: fault
fault: ## Run the fault suite: every step of every operation fails in every way
	@$(GO) test -count=1 -timeout 20m -v ./test/fault | grep -E '^fault points|--- FAIL|^panic|^FAIL'; exit $${PIPESTATUS[0]}
.PHONY: nodes
nodes: deps ## Move VMs and let nodes die on the real stack, killing every process on the way; volumes likewise; pools that go away (about 20 minutes)
	@deploy/dev/test.sh ./test/nodes
	@TEST_FLAGS='-run=^TestCeph$$|^TestPools$$|^TestCloud$$/^Disks$$' NFS_MACHINE=0 deploy/dev/test.sh ./test/crash
	@TEST_FLAGS='-run=^TestRealVolumesGoToAndFromGluster$$|^TestRealVolumesInCeph$$|^TestRealMixedCheckpoints$$' NFS_MACHINE=0 deploy/dev/test.sh ./activities/volume

.PHONY: nfs
nfs: deps ## Run all tests of pools, those on NFS in a machine of their own that can mount it (about 15 minutes)
	@deploy/dev/test.sh ./activities/storage

.PHONY: bench
bench: build ## Measure, against bare scripts doing the same; prints the tables of docs/benchmarks.md
	@deploy/dev/bench.sh
.PHONY: size
size: build cross ## Print the sizes of the programs, and their memory when idle
	@deploy/dev/size.sh

.PHONY: lint
lint: ## Check formatting, the rules of the house, and that workflows are deterministic
	@$(LINT) run $(if $(TAGS),--build-tags "$(TAGS)") ./...
	@test/house/determinism.sh
.PHONY: format
format: ## Format the code
	@$(GOFUMPT) -w $$(git ls-files '*.go')
.PHONY: generate
generate: ## Write api/openapi.json anew
	@$(GO) run ./api/server/openapi > api/openapi.json.tmp && mv api/openapi.json.tmp api/openapi.json
.PHONY: histories
histories: ## Record the workflow histories that the replay tests use, on a real Temporal
	@$(GO) run ./test/histories
.PHONY: clean
clean: down ## Remove what was built
	@rm -rf bin
