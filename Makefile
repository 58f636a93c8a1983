# What people and CI type. `make` alone says what there is.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install -qq --disable-pip-version-check
SUDO   := $(if $(filter 0,$(shell id -u)),,sudo)

# What compiles for AArch64, and its C library, by the machine's architecture: on arm64 gcc does.
ARCHITECTURE := $(shell dpkg --print-architecture 2>/dev/null)
COMPILER_amd64 := gcc-aarch64-linux-gnu libc6-dev-arm64-cross
COMPILER_arm64 := libc6-dev
COMPILER = $(or $(COMPILER_$(ARCHITECTURE)),$(error this needs Debian for amd64 or arm64 (this is \
    $(or $(ARCHITECTURE),another system))))

PACKAGES = mmdebstrap gcc $(COMPILER) make bison flex bc xz-utils \
           libssl-dev libelf-dev erofs-utils openssh-client debian-archive-keyring python3-venv \
           fakeroot fakechroot
# The tests start an SSH server of their own.
SSHD := $(if $(wildcard /usr/sbin/sshd),,openssh-server)
PACKAGES += $(SSHD)
# `hil bisect` builds QEMU with it, and so do its tests.
PACKAGES += ninja-build
# BMCs are reached by IPMI with it, and so is the tests' own.
PACKAGES += ipmitool
# For reports: the machine's own Node.js, whichever that is, or Debian's.
PACKAGES += $(if $(shell command -v npm),,nodejs npm)
# For the test of reports.
BROWSER := $(if $(shell command -v chromium),,chromium)

# What writes the lock file: its version decides the file's form, so everybody has the same.
UV := uv==0.13.9

# The nightly run works on so many of the lab's hosts at a time (fixtures/workers.py). The harness's
# own tests are run by twice as many processes.
WORKERS ?= 2
MINUTES ?= 10

# What the nightly run tests, and where, in place of the virtual lab and its own software. Options of
# `hil` and pytest that are not set have the user's defaults.
LAB ?= $(HIL_LAB)
HOST ?=
QEMU ?=
HOST_KERNEL ?=
GUEST_KERNEL ?=
SOFTWARE = $(if $(QEMU),--qemu='$(QEMU)') $(if $(HOST_KERNEL),--host-kernel='$(HOST_KERNEL)') \
           $(if $(GUEST_KERNEL),--guest-kernel='$(GUEST_KERNEL)')
CHOSEN = $(if $(LAB),--lab='$(LAB)') $(if $(HOST),--host='$(HOST)') $(SOFTWARE) $(TOLD)
# Runs whose durations divide the tests, in place of this checkout's last runs.
DURATIONS ?=
KNOWN = $(foreach one,$(DURATIONS),--durations-from='$(one)')
# A command that tells somebody the end of each run: its input is the summary.
NOTIFY ?=
TOLD = $(if $(NOTIFY),--notify='$(NOTIFY)')

# What reports are made by, from npm: package.json says which, package-lock.json is the lock.
ALLURE := harness/report/allure

# Tells the build backend, which setup needs as well: it builds the project without asking anybody.
BACKEND := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")

# A host that is as a real Grace is: see the inventory. It has no snapshots, so that most tests boot
# their guests, and the nightly run takes a part of the suites there; `make lookalike` takes SUITES.
LOOKALIKE := --lab=lab-inventory/lookalike.yaml
SUITES ?= suites
SAMPLE := suites/veventq/test_sources.py suites/veventq/test_burst.py suites/loss/test_allocation.py \
          suites/cmdqv/test_errors.py suites/data

# So many messages for each server, and inputs for the parsers, take a quarter of an hour.
MESSAGES ?= 1000000
INPUTS ?= 300000

# Kernels to cross, in place of those of the stack that `make matrix` builds, and tests in place of
# the sample of `hil cross`.
MATRIX_STACK ?= linux=7.3,linux=7.2
HOST_KERNELS ?=
GUEST_KERNELS ?=
MATRIX_TESTS ?=

# Programs that are called here call make themselves, to build kernels and QEMU: for themselves.
unexport MAKEFLAGS
# Some images of containers set it. The tests start Python a thousand times, and each start would
# compile all of the harness.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup packages lock hooks test lint docs schema lab lab-test chaos nightly lookalike matrix mutants mutation soak fuzz bench clean

help:
	@echo 'make setup      virtual environment and Debian packages (root or sudo)'
	@echo 'make test       the harness'"'"'s own tests: no lab, some eight minutes'
	@echo 'make lint       ruff, mypy, and the layers of imports'
	@echo 'make docs       pages of what suites use, from the docstrings: build/api/index.html'
	@echo 'make hooks      check every commit with what make lint calls'
	@echo 'make lock       renew the locked versions of what setup and reports install'
	@echo 'make lab        build the virtual lab (about eleven minutes the first time)'
	@echo 'make lab-test   the harness'"'"'s tests that need a virtual host; SHORT=1: without long ones'
	@echo 'make chaos      whatever may happen to a run, at every point of it (half an hour)'
	@echo 'make nightly    set up, build, run every suite; out/<run-id>/ and its report'
	@echo '                MINUTES= of soak; SHORT=1: without long tests; SHARD=1/2: half of the files'
	@echo '                LAB= HOST= QEMU= HOST_KERNEL= GUEST_KERNEL= choose what is tested, and where'
	@echo 'make lookalike  every suite on a look-alike of a real Grace (about an hour), or SUITES='
	@echo 'make matrix     a sample on all combinations of two kernels, or HOST_KERNELS= and GUEST_KERNELS='
	@echo 'make mutants    small faults of the stack: do the suites notice them? ONLY=part of a name;'
	@echo '                SAMPLE=1: ten of them; FRESH=1: all anew'
	@echo 'make mutation   small faults of the harness itself: do its own tests notice them? no lab;'
	@echo '                ONLY=part of a path; FRESH=1: all anew'
	@echo 'make soak       everything at random: MINUTES=60, SEED=... to repeat one'
	@echo 'make fuzz       random input for servers and parsers: MESSAGES=, SEED=... to repeat one'
	@echo 'make bench      has a figure become worse by 15 %? ONLY=help,chain: some of them; ACCEPT=1: it may;'
	@echo '                BASE=../older: compare with another checkout, measured in turn'
	@echo 'make clean      remove the virtual environment and results; the cache stays'

setup: packages $(VENV)/.installed

# A stamp of the package list: apt is asked only when the list or the machine changed.
packages: $(VENV)/.packages

define install
	@if ! dpkg -s $(1) >/dev/null 2>&1; then \
	    echo 'installing Debian packages'; \
	    $(SUDO) apt-get -qq update && \
	    DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get -qq install -y --no-install-recommends \
	        $(1) >/dev/null; \
	fi
	@mkdir -p $(VENV) && touch $@
endef

# A machine that had no SSH server does not run one from now on because of the tests.
define mask
	@for unit in ssh.service ssh.socket; do \
	    test -e /etc/systemd/system/$$unit || test -L /etc/systemd/system/$$unit || \
	        { $(SUDO) mkdir -p /etc/systemd/system && \
	          $(SUDO) ln -s /dev/null /etc/systemd/system/$$unit; }; \
	done
endef

$(VENV)/.packages: Makefile
	$(if $(SSHD),$(mask))
	$(call install,$(PACKAGES))

$(VENV)/.browser: Makefile | packages
	$(if $(BROWSER),$(call install,$(BROWSER)),@mkdir -p $(VENV) && touch $@)

# The versions, and the very files, that the lock names; then this project, which adds nothing.
$(VENV)/.installed: pyproject.toml requirements.lock | packages
	@echo 'making the virtual environment'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --require-hashes --requirement requirements.lock
	@$(PIP) --no-deps --no-build-isolation --editable .
	@said=$$($(BIN)/pip check) || { echo "$$said (run \`make lock\`)" >&2; exit 1; }
	@touch $@

# Everything at its newest that pyproject.toml and package.json allow. Not after `setup`, which
# fails when the lock is what is wrong. --universal: one lock for every Python and system.
# --omit-lockfile-registry-resolved: npm else writes down whose mirror each package came from.
lock: packages
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) '$(UV)'
	@$(BIN)/python -c '$(BACKEND)' | $(BIN)/uv --quiet pip compile pyproject.toml - \
	    --extra dev --universal --python-version 3.11 --upgrade --generate-hashes --no-config \
	    --custom-compile-command 'make lock' --output-file requirements.lock
	@rm -f $(ALLURE)/package-lock.json
	@npm install --prefix=$(ALLURE) --package-lock-only --omit-lockfile-registry-resolved \
	    --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null

# A third of their time they wait for something to end or to be silent.
test: setup
	@$(BIN)/pytest -q -m 'not lab' --numprocesses=$$((2 * $(WORKERS))) tests

lint: setup
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@said=$$($(BIN)/lint-imports --no-cache --no-logo) || { echo "$$said"; exit 1; }

# A reference to what does not exist is an error. Each call looks at all: that takes seconds.
docs: setup
	@$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env \
	    docs/api build/api

hooks: setup
	@$(BIN)/pre-commit install >/dev/null

schema: setup
	@$(BIN)/hil lab schema >lab-inventory/schema.json

lab: setup
	@$(BIN)/hil lab build

lab-test: lab $(VENV)/.browser
	@$(BIN)/pytest -q -m 'lab and (not chaos or sample)$(if $(SHORT), and not long)' \
	    --numprocesses=2 --dist=loadscope tests

chaos: lab
	@$(BIN)/pytest -q -m chaos --numprocesses=$(WORKERS) --dist=worksteal tests/lab/chaos

# make's own exit status is 2 for any failure; whoever wants to know whose it was calls pytest.
# With a lab of one's own nothing is built for it here but what its virtual hosts need, by pytest.
nightly: $(if $(LAB),setup,lab)
	@status=0; \
	$(BIN)/pytest suites --numprocesses=$(WORKERS) --soak-minutes=$(MINUTES) \
	    $(if $(SHORT),-m 'not long') $(if $(SHARD),--shard=$(SHARD)) $(KNOWN) $(CHOSEN) --report || status=$$?; \
	$(if $(LAB),,$(BIN)/pytest $(SAMPLE) $(LOOKALIKE) $(SOFTWARE) $(TOLD) --report || status=$$?;) \
	exit $$status

lookalike: lab
	@$(BIN)/pytest $(SUITES) $(LOOKALIKE) $(SOFTWARE) --report

matrix: export HIL_STACK ?= $(MATRIX_STACK)
matrix: lab
	@$(BIN)/hil cross $(foreach one,$(HOST_KERNELS),--host-kernel=$(one)) \
	    $(foreach one,$(GUEST_KERNELS),--guest-kernel=$(one)) $(if $(FRESH),--fresh) \
	    $(MATRIX_TESTS) --numprocesses=$(WORKERS)

# Each mutant is a faulty stack, on hosts of its own: nothing else is run on them.
mutants: lab
	@$(BIN)/python -m tests.mutants --workers=$(WORKERS) $(if $(ONLY),--only='$(ONLY)') $(if $(filter 1,$(SAMPLE)),--sample) \
	    $(if $(FRESH),--fresh)

# At the least priority: it takes all processors for long, and measures no time.
mutation: setup
	@nice -n 19 $(BIN)/python -m tests.mutation --workers=$(WORKERS) $(if $(ONLY),--only='$(ONLY)') \
	    $(if $(FRESH),--fresh)

soak: lab
	@$(BIN)/pytest suites/soak --soak-minutes=$(MINUTES) $(if $(SEED),--soak-seed=$(SEED))

# Any failure is told with a seed, which `python -m tests.fuzz.TARGET --messages 1 --seed` repeats.
fuzz: setup
	@status=0; for target in vfio_user control parsers; do \
	    case $$target in parsers) messages=$(INPUTS);; *) messages=$(MESSAGES);; esac; \
	    nice $(BIN)/python -m tests.fuzz.$$target --messages=$$messages $(if $(SEED),--seed=$(SEED)) \
	        || status=$$?; \
	done; \
	nice $(BIN)/pytest -q -m 'hypothesis and not lab' --hypothesis-profile=search \
	    --numprocesses=$(WORKERS) tests || status=$$?; \
	exit $$status

# It builds the lab itself if what it measures needs one.
bench: setup
	@$(BIN)/python -m benchmarks $(if $(ONLY),--only='$(ONLY)') $(if $(filter 1,$(ACCEPT)),--accept) \
	    $(if $(BASE),--base='$(BASE)')

clean:
	rm -rf $(VENV) out build
