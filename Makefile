# Every target sets up what it needs. `make demo` shows the whole thing; `make test` checks it.
PY := .venv/bin/python
# Where it is set, each of a thousand processes of the tests compiles the project for itself.
unexport PYTHONDONTWRITEBYTECODE
ARCH := $(shell uname -m | sed 's/x86_64/x86/;s/aarch64/arm64/')

.PHONY: setup demo test test-long bench lint docs wheel clean
demo: setup
	$(PY) -m tests.system.demo

setup:
	@deploy/setup.sh

test: setup lint
	$(PY) -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test-long: setup
	$(PY) -m tests.long

bench: setup
	$(PY) -m tests.bench

lint:
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

# What is written from the code; a test compares.
docs: setup
	$(PY) -m deploy.configurations docs/configuration.md
	$(PY) -m shared.api.openapi docs/openapi.json
	$(PY) -m shared.api.page docs/api.md

wheel: setup
	@$(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir build .
	@ls -t build/understudy-*.whl | head -1

agent/capture/bpf/capture.bpf.o: agent/capture/bpf/capture.bpf.c
	clang -O2 -g -Wall -Werror -ffile-compilation-dir=. -target bpf -mcpu=v3 -D__TARGET_ARCH_$(ARCH) -I/usr/include/$(shell uname -m)-linux-gnu -c $< -o $@

clean:
	rm -rf build .venv agent/capture/bpf/capture.bpf.o
