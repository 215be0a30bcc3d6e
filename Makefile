# `make` alone prints what there is. Needed: Go, git and make; the rest is pinned in tools/go.mod and built when it is first used.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

# Nothing here needs a C compiler but the race detector, which switches this on for itself.
export CGO_ENABLED := 0

# The nearest tag, without its v; a build from sources without tags is 0.0.0-dev.
VERSION ?= $(patsubst v%,%,$(shell git describe --tags --match 'v*' --dirty 2>/dev/null || echo 0.0.0-dev))
COMMIT  ?= $(shell git describe --always --exclude '*' --abbrev=12 --dirty 2>/dev/null || echo unknown)

# What to work on, for test, race, lint and fuzz: `make test MODULES=. PKGS=./broker/...`
MODULES  ?= . $(patsubst %/go.mod,%,$(wildcard test/*/go.mod examples/*/go.mod tools/*/go.mod))
PKGS     ?= ./...
FUZZTIME ?= 30s
SOAK     ?= 10m
BENCH    ?= .
# What make node-test runs: nothing (all), standalone (without an API server), or a pattern of names of tests.
SCENARIOS ?=
export MODULES PKGS FUZZTIME BENCH

OUT      ?= bin
COMMANDS := $(patsubst %/,./%,$(sort $(dir $(wildcard cmd/*/*.go))))
BROKER   := $(filter ./cmd/credential-broker,$(COMMANDS))
BACKENDS := $(filter ./cmd/credential-backend-%,$(COMMANDS))
# What a backend starts, and looks for beside itself.
HELPERS  := $(filter ./cmd/gar-check ./cmd/aws-identity-token,$(COMMANDS))
OTHERS   := $(filter-out $(BROKER) $(BACKENDS) $(HELPERS),$(COMMANDS))
# grpcnotrace leaves out gRPC's debugging pages, whose templates make the linker keep every exported method of every type: a sixth of a program's size, and time in each start.
GO_BUILD  = go build -trimpath -tags grpcnotrace -buildvcs=false -ldflags "$(GO_STRIP) -X main.version=$(VERSION) -X main.commit=$(COMMIT)$(ENTRY)"
# What is given away has no symbols and nothing for a debugger, which is a third of a program; what tests look into has.
GO_STRIP ?=
release packages package-test image: export GO_STRIP = -s -w
# Where the broker's process begins, on the platforms that have it (broker/agent/fast/begin_linux.go).
ENTRY     =
broker: ENTRY = $$(case $$(go env GOOS)/$$(go env GOARCH) in linux/amd64|linux/arm64) echo " -E github.com/credential-broker/credential-broker/broker/agent/fast.entry";; esac)

.PHONY: help build broker vault-server demo demo-vault dashboard test node-test race soak lint fmt generate check-generate bench fuzz cross clean image release release-check packages package-test kubelet-versions

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: $(if $(BROKER),broker) ## Build bin/credential-broker and bin/backends/* (OUT=bin)
	$(if $(BACKENDS),@$(GO_BUILD) -o $(OUT)/backends/ $(BACKENDS) $(HELPERS))
	$(if $(OTHERS),@$(GO_BUILD) -o $(OUT)/ $(OTHERS))
	@echo "built in $(OUT)/: $(or $(notdir $(COMMANDS)),nothing) (version $(VERSION), commit $(COMMIT))"

broker:
	@$(GO_BUILD) -o $(OUT)/ $(BROKER)
	@[ "$$(go env GOOS)" = windows ] || ln -sf credential-broker $(OUT)/docker-credential-broker

demo: build ## See it work: a private registry, three backends, one pull (no root needed)
	@cd test/demo && go run .

demo-vault: build ## The same with a real Vault: a robot that is rotated, a user that is lent (builds Vault first where it is not yet: about 10 minutes)
	@cd test/demo && go run . -vault

dashboard: build ## Draw docs/dashboard.svg: the Grafana dashboard, of a real agent and Prometheus under load (5 minutes; installs Debian's prometheus)
	@cd test/dashboard && go run .

test: build ## Run every test, of this module, those below test/ and the examples (MODULES=, PKGS=)
	@tools/test.sh

vault-server: ## Build the real Vault server that tests run (10 to 20 minutes the first time on a machine; make test does it too)
	@go run ./test/vaultserver/build

kubelet-versions: build ## Run the built broker with the oldest supported kubelet's code (3 to 9 minutes to compile the first time)
	@MODULES=test/kubelet/oldest PKGS=. tools/test.sh

node-test: build ## Run real nodes: kubelet, API server, containerd (root and Debian; 20 minutes, and 25 more the first time; SCENARIOS=standalone needs no API server)
	@tools/node-test.sh '$(SCENARIOS)'

race: build ## Run the tests under the race detector, save those of programs that it does not see into (MODULES=, PKGS=)
	@tools/test.sh -race

soak: ## Run an agent that the race detector watches under a mixed load for SOAK (10m)
	@tools/compiler.sh
	@cd test/faults && CGO_ENABLED=1 SOAK=$(SOAK) go test -race -count=1 -timeout 0 -run '^TestSoak$$' -v .

lint: ## Check formatting, vet, golangci-lint, buf, go.mod files and paths of one machine (MODULES=, PKGS=)
	@tools/lint.sh

fmt: ## Format the Go code as `make lint` wants it
	@go tool -modfile=tools/go.mod golangci-lint fmt

generate: ## Generate the protocol's Go code from proto/
	@tools/generate.sh

check-generate: ## Check that generating again changes nothing
	@tools/generate.sh --check

bench: ## Run the benchmarks: of functions, and of whole processes against their peers (BENCH=)
	@go test -run '^$$' -bench '$(BENCH)' -benchmem $(PKGS)
	@cd test/kubelet && go run ./cost
	@cd test/peers && go run ./cost

fuzz: ## Fuzz every target for FUZZTIME (30s) each and print a table (MODULES=, PKGS=)
	@tools/fuzz.sh

cross: ## Build, and vet with the tests, for every supported platform
	@tools/cross.sh

# An image's times are its commit's, so that the same commit gives the same bytes.
IMAGE_PLATFORMS ?= linux/amd64 linux/arm64
IMAGE            = dist/credential-broker-image-$(subst +,-,$(VERSION)).tar
image: ## Build the DaemonSet's container image, dist/credential-broker-image-*.tar (an OCI layout), without docker, and print its digest
	@mkdir -p dist; work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; parts=(); \
	for platform in $(IMAGE_PLATFORMS); do \
	  GOOS=$${platform%/*} GOARCH=$${platform#*/} $(MAKE) build OUT="$$work/$$platform" >/dev/null; \
	  parts+=("$$platform=$$work/$$platform"); \
	done; \
	go -C tools run ./image --out "$(CURDIR)/$(IMAGE)" --version '$(VERSION)' \
	  --created "$$(TZ=UTC git log -1 --format=%cd --date=format-local:%Y-%m-%dT%H:%M:%SZ 2>/dev/null || echo 1970-01-01T00:00:00Z)" "$${parts[@]}"

# An executable does not say with which flags of the linker it was built, so whoever would have others is refused here: variables of the command line, and the environment's with -e, go before the ones above.
space := $() $()
MINE   = $(strip $(filter-out VERSION=% COMMIT=% PLATFORMS=%,$(subst \$(space),_,$(MAKEOVERRIDES))) $(if $(findstring e,$(firstword -$(MAKEFLAGS))),-e))
release: ## Build what is released into dist/: archives, SBOMs, provenance, checksums (PLATFORMS=; docs/release.md)
	@$(if $(MINE),$(error a release is built with nothing of one's own but VERSION, COMMIT and PLATFORMS: leave out $(MINE)))
	@VERSION='$(VERSION)' COMMIT='$(COMMIT)' tools/release.sh

release-check: ## Make the release twice, in two clones that differ in all they may, and compare the bytes (the second compiles everything anew)
	@tools/release.sh --check

packages: ## Build dist/*.deb and dist/*.rpm for Linux (ARCH="amd64 arm64")
	@VERSION='$(VERSION)' COMMIT='$(COMMIT)' tools/package/build.sh

package-test: ## Install, upgrade and remove the packages in systems made for it (Debian, root, 5 minutes; installs Debian's mmdebstrap, rpm, lintian)
	@VERSION='$(VERSION)' COMMIT='$(COMMIT)' tools/package/try.sh

clean: ## Remove what was built
	rm -rf bin dist
