# What people and CI type. `make` alone says what there is.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install -qq --disable-pip-version-check
SUDO   := $(if $(filter 0,$(shell id -u)),,sudo)

PACKAGES := mmdebstrap gcc gcc-aarch64-linux-gnu libc6-dev-arm64-cross make bison flex bc xz-utils \
            libssl-dev libelf-dev erofs-utils openssh-client debian-archive-keyring python3-venv \
            fakeroot fakechroot
# The tests start an SSH server of their own.
SSHD := $(if $(wildcard /usr/sbin/sshd),,openssh-server)
PACKAGES += $(SSHD)
# For reports: the machine's own Node.js, whichever that is, or Debian's.
PACKAGES += $(if $(shell command -v npm),,nodejs npm)
# For the test of reports.
BROWSER := $(if $(shell command -v chromium),,chromium)

# What writes the lock file: its version decides the file's form, so everybody has the same.
UV := uv==0.13.9

# So many processes run the harness's own tests. The nightly run works on as many of the lab's hosts
# at a time.
WORKERS ?= 2
MINUTES ?= 10

# What reports are made by, from npm: package.json says which, package-lock.json is the lock.
ALLURE := harness/report/allure

# Tells the build backend, which setup needs as well: it builds the project without asking anybody.
BACKEND := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")

# A host that is as a real Grace is: see the inventory. It has no snapshots, so that most tests boot
# their guests, and the nightly run takes a part of the suites there.
LOOKALIKE := --lab=lab-inventory/lookalike.yaml
SAMPLE := suites/veventq/test_sources.py suites/veventq/test_burst.py suites/loss/test_allocation.py \
          suites/cmdqv/test_errors.py suites/data

# So many messages for each server, and inputs for the parsers, take a quarter of an hour.
MESSAGES ?= 1000000
INPUTS ?= 300000

.PHONY: help setup packages lock hooks test lint schema lab lab-test chaos nightly lookalike soak fuzz bench clean

help:
	@echo 'make setup      virtual environment and Debian packages (root or sudo)'
	@echo 'make test       the harness'"'"'s own tests: no lab, some four minutes'
	@echo 'make lint       ruff, mypy, and the layers of imports'
	@echo 'make hooks      check every commit with what make lint calls'
	@echo 'make lock       renew the locked versions of what setup and reports install'
	@echo 'make lab        build the virtual lab (about seven minutes the first time)'
	@echo 'make lab-test   the harness'"'"'s tests that need a virtual host'
	@echo 'make chaos      whatever may happen to a run, at every point of it (about 40 minutes)'
	@echo 'make nightly    set up, build, run every suite; out/<run-id>/ and its report'
	@echo 'make lookalike  every suite on a look-alike of a real Grace (about an hour)'
	@echo 'make soak       everything at random: MINUTES=60, SEED=... to repeat one'
	@echo 'make fuzz       random input for servers and parsers: MESSAGES=, SEED=... to repeat one'
	@echo 'make bench      measure boot, restore, burst, decode and the boundary'
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

$(VENV)/.browser: Makefile
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

test: setup
	@$(BIN)/pytest -q -m 'not lab' --numprocesses=$(WORKERS) tests

lint: setup
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@said=$$($(BIN)/lint-imports --no-cache --no-logo) || { echo "$$said"; exit 1; }

hooks: setup
	@$(BIN)/pre-commit install >/dev/null

schema: setup
	@$(BIN)/hil lab schema >lab-inventory/schema.json

lab: setup
	@$(BIN)/hil lab build

lab-test: lab $(VENV)/.browser
	@$(BIN)/pytest -q -m 'lab and (not chaos or sample)' tests

chaos: lab
	@$(BIN)/pytest -q -m chaos tests/lab/chaos

# make's own exit status is 2 for any failure; whoever wants to know whose it was calls pytest.
nightly: lab
	@status=0; \
	$(BIN)/pytest suites --numprocesses=$(WORKERS) --dist=loadgroup --soak-minutes=$(MINUTES) \
	    --report || status=$$?; \
	$(BIN)/pytest $(SAMPLE) $(LOOKALIKE) --report || status=$$?; \
	exit $$status

lookalike: lab
	@$(BIN)/pytest suites $(LOOKALIKE) --report

soak: lab
	@$(BIN)/pytest suites/soak --soak-minutes=$(MINUTES) $(if $(SEED),--soak-seed=$(SEED))

# Any failure is told with a seed, which `python -m tests.fuzz.TARGET --messages 1 --seed` repeats.
fuzz: setup
	@status=0; for target in vfio_user control parsers; do \
	    case $$target in parsers) messages=$(INPUTS);; *) messages=$(MESSAGES);; esac; \
	    nice $(BIN)/python -m tests.fuzz.$$target --messages=$$messages $(if $(SEED),--seed=$(SEED)) \
	        || status=$$?; \
	done; exit $$status

bench: lab
	@$(BIN)/python benchmarks/chain.py
	@$(BIN)/python benchmarks/boundary.py
	@$(BIN)/python benchmarks/cmdqv.py

clean:
	rm -rf $(VENV) out
