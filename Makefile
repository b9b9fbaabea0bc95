# The same commands for a newcomer, a contributor and CI. Everything lives in $(VENV); nothing else is touched.
#
#   make demo      environment, export of the sample checkpoint, generated text
#   make test      environment and the whole test suite
#   make install   the development environment alone
#   make lint      ruff: rules and format
#   make check     mypy --strict
#   make interop   bundles in optimum, onnxruntime-genai and transformers.js, each in an environment of its own (Node, npm,
#                  chromium)
#   make ray       batch jobs over Ray Data: two workers here, one killed (an environment of its own, 750 MB)
#   make providers the execution providers that are packages of their own: WebGPU on a software GPU (chromium's), QNN on its
#                  emulator
#   make arm64     the runtime on an imitated ARM64 processor (Debian's qemu-user-static; skipped without)
#   make c         the library for apps: its tests, sanitizers, fuzz targets, valgrind, ARM64 (after `make arm64`), and Java
#                  and Kotlin over it (CMake, Ninja, doctest, Clang, a JDK, kotlinc)
#   make web       the browser's package: types, build, unit tests (Node 20 and npm)
#   make web-e2e   the same package in headless Chromium, beside Python
#   make targets   holds docs/targets.md against the results of these tests; run it last
#   make web-chat  a page that continues texts in your browser: exports the sample, builds, serves it on
#                  http://localhost:4173; make web-chat-e2e tests it in headless Chromium
#   make bench     measurements beside other runtimes (a random 2.17 B checkpoint, peers' environments: 40 GB, hours);
#                  writes docs/performance.md and its charts anew

PYTHON ?= python3
VENV ?= .venv
# A plain `pip install torch` may fetch the build for NVIDIA GPUs, which is several GB. Where your index offers a CPU
# build under another address, install torch into $(VENV) from there first: this line then finds it satisfied.
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Processes that share the files of the suite. Many tests start processes with a thread for each core themselves.
WORKERS ?= 2
# Results lie in out/results: docs/targets.md is written from them.
PYTEST := $(BIN)/python -m pytest --junitxml=out/results
DEMO := out/helium-docs-7m-int4
WEB_CHAT := samples/web-chat

.PHONY: demo test install lint check interop ray providers arm64 c web web-e2e web-chat web-chat-e2e targets bench clean

demo: $(DEMO)/helium.json
	@$(BIN)/helium-onnx generate $(DEMO) "Pour insérer un tableau dans un document texte," --max-new-tokens 48

$(DEMO)/helium.json: $(VENV)/.export
	@$(BIN)/helium-onnx export samples/helium-docs-7m $(DEMO) --recipe cpu-int4 --force

test: $(VENV)/.dev
	$(PYTEST)/tests.xml --numprocesses $(WORKERS) --dist loadfile

install: $(VENV)/.dev

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check: $(VENV)/.dev
	$(BIN)/mypy

interop: $(VENV)/.dev
	$(BIN)/python tests/interop/environments.py
	HELIUM_REQUIRE_CLIENTS=1 $(PYTEST)/interop.xml tests/interop

ray: $(DEMO)/helium.json
	@test -x out/clients/ray/bin/python || $(PYTHON) -m venv out/clients/ray
	out/clients/ray/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[ray]' pytest
	HELIUM_REQUIRE_RAY=1 HELIUM_BUNDLE=$(DEMO) out/clients/ray/bin/python -m pytest --junitxml=out/results/ray.xml \
		tests/batching/test_ray.py

# Beside the environment, and without what they ask for: onnxruntime is there, and of the rest they import nothing.
providers: $(VENV)/.dev
	$(PIP) --no-deps --upgrade --target out/clients/webgpu onnxruntime-ep-webgpu==0.4.0
	$(PIP) --no-deps --upgrade --target out/clients/qnn onnxruntime-qnn==2.7.0
	HELIUM_REQUIRE_WEBGPU=1 $(PYTEST)/webgpu.xml tests/runtimes/test_webgpu_session.py
	HELIUM_REQUIRE_QNN=1 PYTHONPATH=$(CURDIR)/out/clients/qnn $(PYTEST)/qnn.xml tests/runtimes/test_qnn.py \
		tests/placement/test_qnn_emulator.py tests/packaging tests/cli/test_cli_package.py

arm64: $(VENV)/.dev
	$(BIN)/python tests/arm64/run.py out/results

c: $(VENV)/.dev
	$(BIN)/python tests/c/run.py out/results

web:
	cd runtimes/web && npm ci --no-audit --no-fund && npm run check && npm run build && npm test

web-e2e: web $(VENV)/.dev
	cd runtimes/web && HELIUM_PYTHON=$(CURDIR)/$(BIN)/python npm run e2e

# The page that continues texts, on http://localhost:4173.
web-chat: $(VENV)/.export
	cd runtimes/web && npm ci --no-audit --no-fund && npm run build
	@test -f $(WEB_CHAT)/public/model/helium.json || \
		$(BIN)/helium-onnx export samples/helium-docs-7m $(WEB_CHAT)/public/model --recipe cpu-int8
	cd $(WEB_CHAT) && npm ci --no-audit --no-fund && npm run build && npm run preview

web-chat-e2e: web $(VENV)/.dev
	cd $(WEB_CHAT) && npm ci --no-audit --no-fund && npm run check && npm run build && \
		HELIUM_PYTHON=$(CURDIR)/$(BIN)/python npm run e2e

targets: $(VENV)/.dev
	$(BIN)/python tests/targets/targets_page.py --check

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/main_job.py
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/speculation.py
	$(BIN)/python benchmarks/python_share.py
	$(BIN)/python benchmarks/settings.py
	$(BIN)/python benchmarks/operators.py
	$(BIN)/python benchmarks/performance_page.py

clean:
	rm -rf $(VENV) out build dist

$(VENV)/.torch: constraints.txt
	@echo "Creating the environment in $(VENV) (some minutes, once) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) $(TORCH)
	@touch $@

$(VENV)/.export: $(VENV)/.torch pyproject.toml
	@$(PIP) --editable '.[export]'
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.export
