# All that a newcomer needs: `make demo` and `make test` install what is missing, build the extension, and run.

# The distribution's own Python first: the packages below are for it, and it is often half as fast again as others.
PYTHON ?= $(shell for each in /usr/bin/python3 python3; do \
    $$each -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$each && exit; done; echo python3)
VENV   ?= .venv
# How long the demo's calls last, in seconds. For `make fuzz`: how long it searches, 60 by default. For `make churn`: 180.
SECONDS ?= 10
# For `make demo`: STAY=1 keeps it running, for a browser.
STAY    ?=
# What `make fuzz` searches: twins, parsers, the name of a target, or all.
FUZZ    ?=
# Options of `make loadtest`, `make soak`, `make churn` and `make nightly`, such as `--carrier websocket`.
LOADTEST ?=
# Options of `make bench-wan`, such as `--scenario c3 --server relay`.
WAN     ?=
# Options of `make bench-turn`, such as `--realtime --pps 100`.
TURN    ?=
# Options of `make bench-side-by-side`, such as `--counts 400 --rounds 3`.
SIDE    ?=

# Debian's packages. They build the extension and the benchmark. Benchmark and tests use coturn as a real TURN server. Tests
# also use Wireshark (to read captures), programs that read allow-lists, reverse proxies and a web proxy, and Prometheus.
BUILD_PACKAGES := gcc libc6-dev libssl-dev python3-dev python3-venv
BENCH_PACKAGES := $(BUILD_PACKAGES) make libssl-dev coturn
# Go and pion/turn, for one more server to compare with.
SIDE_PACKAGES  := $(BENCH_PACKAGES) golang-go golang-github-pion-turn.v2-dev
# The official socket.io servers and clients need node. Many machines have it, but not from Debian.
NODE_PACKAGES  := $(if $(and $(shell command -v node),$(shell command -v npm)),,nodejs npm)
TEST_PACKAGES  := $(BENCH_PACKAGES) chromium haproxy iproute2 iptables nftables nginx-light openssl postgresql prometheus \
                  redis-server squid tshark $(NODE_PACKAGES)

BIN      := $(VENV)/bin
ASAN     := build/asan
# A larger benchmark, used if it is next to the repository.
COMPARE  := ../shared/perf/compare.py
SOURCES  := pyproject.toml setup.py relay/_fastpath.pyx $(wildcard relay/plane/compiled/*.pxd relay/plane/compiled/leaves/*.pxd \
            relay/emulator/*/*.pyx relay/emulator/*/*.pxd loadtest/engine/*.pyx loadtest/engine/*.pxd)

.PHONY: help demo demo-wan test lint style types fuzz asan-built \
        bench bench-side-by-side bench-turn bench-wan loadtest soak churn nightly nightly-soak nightly-churn \
        nightly-fuzz nightly-face clean
.DELETE_ON_ERROR:

help:
	@echo "make demo   place real SRTP calls on loopback, direct and through the relay (SECONDS=$(SECONDS), STAY=1)"
	@echo "make demo-wan  hear one sentence over a bad path: by UDP, by TLS, and through the relay"
	@echo "make test   lint, types, fuzz, test-asan and the whole test suite"
	@echo "make lint   only lint and types"
	@echo "make fuzz   search for input that parsers cannot take, or on which twins differ (SECONDS=60, FUZZ=parsers)"
	@echo "make test-asan  tests of compiled code under AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make bench  measure the relay and coturn: CPU per packet, latency, loss"
	@echo "make bench-side-by-side  the relay on both planes, coturn, the emulator's TURN host and pion/turn, on each carrier (root)"
	@echo "make bench-turn  the emulator's TURN host and coturn over UDP: CPU per packet, loss, memory"
	@echo "make bench-wan  voice over a bad WAN, through the relay and coturn (root; WAN='--scenario c3 --server relay')"
	@echo "make loadtest  ten desks through a relay for 30 s, with a verdict and a report (LOADTEST='--carrier websocket')"
	@echo "make soak   100 desks through a relay for an hour, with a verdict and a report (LOADTEST='--carrier session')"
	@echo "make churn  300 calls that come and go for 3 minutes: does the relay's memory grow? (SECONDS=180)"
	@echo "make nightly  what is too long for make test: soak, churn, fuzz, and the relay's sockets under sanitizers"
	@echo "make clean  remove what was built"

demo: $(VENV)/.demo-installed
	@$(BIN)/relay demo --seconds $(SECONDS) $(if $(STAY),--stay)

demo-wan: $(VENV)/.demo-installed
	@$(BIN)/relay demo --wan

# The suite in parts of a few minutes each, the longest first. Each part is run by some processes, which take turns with its
# test files. Tests wait about as long as they compute, so several processes share a core. The fuzz search has the
# lowest priority; of parsers the suite tries the stored corpus and random scenarios only, and the night searches them. Load
# tests are last, when the machine has less and less else to do: it must keep their pace.
PARTS := test-interop test-floor test-asan test-emulator test-gateway test-plane test-others test-loadtest
# How many processes run a part: so many that none takes longer than the rest, and few, because each collects its tests.
# Of load tests no more than three may run beside each other, or they lose their pace.
SHARES_test-interop  := 1 2 3
SHARES_test-loadtest := 1 2 3
shares = $(addprefix $(1).,$(or $(SHARES_$(1)),1 2))
PROCESSES := $(foreach part,$(PARTS),$(call shares,$(part)))

.PHONY: $(PARTS) $(PROCESSES)

test: style
	@$(MAKE) --no-print-directory --jobs=6 --output-sync=target FUZZ=twins fuzz types $(PROCESSES)

$(PARTS):
	@$(MAKE) --no-print-directory --jobs=3 --output-sync=target $(call shares,$@)

# Development mode, but without its checks of Python's own memory, which take a tenth of the time. They find what compiled
# code writes beside a block: test-plane has them, and under sanitizers more is found.
STRICT  := -X dev -W error
MALLOC  := PYTHONMALLOC=default
$(call shares,test-plane): MALLOC :=
# Without development mode: the same tests have run in it, and it slows the sanitizers down.
$(call shares,test-asan): STRICT := -W error
$(call shares,test-asan): MALLOC :=
SHARE    = $(patsubst .%,%,$(suffix $@))/$(words $(call shares,$(basename $@)))
PYTEST   = $(MALLOC) $(abspath $(BIN))/python $(STRICT) -m pytest --durations=5 --share=$(SHARE)

$(call shares,test-plane): $(VENV)/.test-installed
	@$(PYTEST) tests/plane

$(call shares,test-gateway): $(VENV)/.test-installed
	@$(PYTEST) tests/gateway tests/client

# The emulator as people see it: its pages in a browser, its softphones, its command, and the demo.
FLOOR_TESTS := tests/emulator/portal tests/emulator/softphone tests/emulator/softphone_page tests/floor tests/demo

$(call shares,test-floor): $(VENV)/.test-installed
	@$(PYTEST) $(FLOOR_TESTS)

$(call shares,test-emulator): $(VENV)/.test-installed
	@$(PYTEST) tests/emulator $(addprefix --ignore=,$(FLOOR_TESTS))

$(call shares,test-interop): $(VENV)/.test-installed
	@$(PYTEST) tests/interop

$(call shares,test-loadtest): $(VENV)/.test-installed
	@$(PYTEST) tests/loadtest

$(call shares,test-others): $(VENV)/.test-installed
	@$(PYTEST) $(foreach folder,plane gateway client interop emulator floor demo loadtest,--ignore=tests/$(folder))

lint: style types

style: $(VENV)/.test-installed
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .

types: $(VENV)/.test-installed
	$(BIN)/mypy
	$(BIN)/stubtest --mypy-config-file pyproject.toml relay._fastpath relay.emulator.sfu._fanout relay.emulator.turn._native loadtest.engine._engine

fuzz: SECONDS = 60
fuzz: $(VENV)/.test-installed
	@nice -n 19 $(BIN)/python -m tests.fuzz $(SECONDS) $(FUZZ)

# Without what runs no compiled code: the reference plane, and the TURN host in Python, which is called slow.
ASAN_TESTS ?= tests/plane tests/fuzz tests/wire/test_stream.py tests/gateway/test_bad_media.py tests/emulator/sfu \
    tests/emulator/turn tests/loadtest/engine \
    --ignore=tests/plane/test_schedule_queue.py --ignore=tests/emulator/turn/test_streams.py
COMPILED := not reference and not [slow and not -slow

# In a copy of the tree, so that its extension stays as it is. A sanitizer's report ends the run. LeakSanitizer is off, because
# it would list the interpreter's leaks. The debug build counts our own objects, and the tests assert that none are left.
# pytest must not capture the output, or it would hide the report of a sanitizer that ends the process.
$(call shares,test-asan): asan-built
	@cd $(ASAN) && export RELAY_DEBUG=1 RELAY_SANITIZE=1 PYTHONMALLOC=malloc && \
	    LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=detect_leaks=0:log_path=report$(suffix $@) UBSAN_OPTIONS=print_stacktrace=1:log_path=report$(suffix $@) \
	    $(PYTEST) --capture=sys -k '$(COMPILED)' $(ASAN_TESTS) </dev/null \
	    || { cat report$(suffix $@).* 2>/dev/null; exit 1; }

asan-built: $(VENV)/.test-installed
	@rm -rf $(ASAN)/relay $(ASAN)/loadtest $(ASAN)/tests $(ASAN)/report.* && mkdir -p $(ASAN)
	@tar -c --exclude='*.so' --exclude=__pycache__ relay loadtest tests setup.py pyproject.toml README.md LICENSE | tar -x -C $(ASAN)
	@cd $(ASAN) && export RELAY_DEBUG=1 RELAY_SANITIZE=1 && \
	    $(abspath $(BIN))/python setup.py -q build_ext --inplace >/dev/null && \
	    $(abspath $(BIN))/python -m tests.fuzz.build && $(abspath $(BIN))/python -m tests.loadtest.engine.build

# A smoke test under load. The report stays in build/loadtest until the next one.
loadtest: $(VENV)/.bench-installed
	@rm -rf build/loadtest
	@$(BIN)/relay loadtest run desk --output build/loadtest $(LOADTEST)

# Permissions end after five minutes, channels and allocations after ten. An hour sees each of them renewed many times.
soak: $(VENV)/.bench-installed
	@rm -rf build/soak
	@$(BIN)/relay loadtest run soak --output build/soak $(LOADTEST)

# Each call that ends must leave nothing behind. Three minutes tell of what is as large as a call's own memory.
churn: SECONDS = 180
churn: $(VENV)/.bench-installed
	@rm -rf build/churn
	@$(BIN)/relay loadtest run churn --seconds $(SECONDS) --output build/churn $(LOADTEST)

# One after the other, because a soak wants the machine for itself; the others run, too, if one has failed.
nightly:
	@$(MAKE) --no-print-directory --keep-going --jobs=1 nightly-soak nightly-churn nightly-fuzz nightly-face

# Long enough for each of them to be renewed.
nightly-soak: $(VENV)/.bench-installed
	@rm -rf build/nightly
	@$(BIN)/relay loadtest run soak --seconds 720 --output build/nightly $(LOADTEST)

nightly-churn: $(VENV)/.bench-installed
	@rm -rf build/nightly-churn
	@$(BIN)/relay loadtest run churn --output build/nightly-churn $(LOADTEST)

nightly-fuzz:
	@$(MAKE) --no-print-directory fuzz SECONDS=600

# A relay whose compiled code is watched by sanitizers, and clients that say what no client should.
nightly-face: asan-built
	@cd $(ASAN) && export RELAY_DEBUG=1 RELAY_SANITIZE=1 PYTHONMALLOC=malloc && \
	    LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=detect_leaks=0:log_path=report UBSAN_OPTIONS=print_stacktrace=1:log_path=report \
	    $(abspath $(BIN))/python -W error -m tests.fuzz.face 600

bench: $(VENV)/.bench-installed
	@if [ -e $(COMPARE) ]; then \
	    PATH="$(abspath $(BIN)):$$PATH" $(PYTHON) $(COMPARE) --relay "$(abspath loadtest/bench/start-relay.sh)"; \
	else $(BIN)/python -m loadtest.bench.bench; fi

bench-turn: $(VENV)/.bench-installed
	@$(BIN)/python -m loadtest.bench.sidebyside --rows emulator/udp,coturn/udp --counts 400,1000 --idle 1000 $(TURN)

bench-side-by-side: $(VENV)/.side-installed
	@$(BIN)/python -m loadtest.bench.sidebyside --realtime $(SIDE)

bench-wan: $(VENV)/.bench-installed
	@$(BIN)/python -m loadtest.bench.wan $(WAN)

# $(1): packages, $(2): extra, $(3): the stamp
define install
	@missing=$$(for package in $(1); do \
	    dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || echo $$package; done); \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ]; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	else echo "Packages are missing. Run: sudo apt-get install -y --no-install-recommends" $$missing; exit 1; fi
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[$(2)]'
	@touch $(3)
endef

$(VENV)/.demo-installed: $(SOURCES)
	$(call install,$(BUILD_PACKAGES),emulator,$@)

$(VENV)/.test-installed: $(SOURCES) tests/support/peers/node/package-lock.json
	$(call install,$(TEST_PACKAGES),dev,$@)
	@$(BIN)/python -m tests.support.peers.socketio

$(VENV)/.bench-installed: $(SOURCES)
	$(call install,$(BENCH_PACKAGES),loadtest,$@)

$(VENV)/.side-installed: $(SOURCES)
	$(call install,$(SIDE_PACKAGES),loadtest,$@)

clean:
	rm -rf $(VENV) build dist *.egg-info relay/*.so relay/emulator/turn/*.so loadtest/engine/*.so .mypy_cache .ruff_cache .hypothesis
