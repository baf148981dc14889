# SPDX-License-Identifier: Apache-2.0
#
#   make          static binaries in ./bin
#   make demo     the whole story on this machine, with a table of numbers
#   make test     all test suites, each within its budget (scripts/suites)
#   make bench    Braid beside other NBD servers, measured in turn (BENCHFLAGS=…)
#   make bench-all  with Ceph, on a disk, with 1 to 8 servers; fills the pages in docs
#   make lint     formatting, vet, import and style rules
#   make soak     the long forms of the tests
#   make fuzz     every decoder, FUZZTIME each (30s)
#   make clean    removes what make has built

GO ?= go
FUZZTIME ?= 30s

.PHONY: build test bench bench-all lint demo soak fuzz clean

# No C library, so one binary runs on every distribution; -trimpath, so the same
# commit gives the same bytes wherever it is built; what git thinks of the folder does not matter.
build:
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -o bin/ ./cmd/...

test:
	@scripts/test

lint:
	@scripts/lint

bench: build
	@scripts/deps bench
	@case '$(BENCHFLAGS)' in *ceph*) scripts/deps bench-ceph ;; esac
	@$(GO) build -o bin/bench ./perf/bench
	@bin/bench $(BENCHFLAGS)

# What one run leaves out, and says so, must not keep the others from being taken.
bench-all: build
	@scripts/deps bench bench-ceph
	@$(GO) build -o bin/bench ./perf/bench
	-bin/bench -peers ceph $(BENCHFLAGS)
	-bin/bench -backing disk -set disk -only raw,braid-r2,qemu-nbd,nbdkit-file -rounds 3 -idle 0 \
		-out perf/results/disk $(BENCHFLAGS)
	-bin/bench -scale 1,2,4,8 -rounds 3 -out perf/results/scaling $(BENCHFLAGS)
	-scripts/profile
	$(GO) run ./perf/pages

demo:
	@scripts/demo

soak:
	@scripts/soak

fuzz:
	@scripts/fuzz $(FUZZTIME)

clean:
	rm -rf bin dist
