# Every target sets up what it needs: python3 3.11+, make and a package index are enough.
# `make quickstart` runs the main job, `make check test` is what CI runs.

PYTHON ?= python3
CONTAINER ?= docker
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: quickstart test check format protos check-protos test-native test-protobuf7 test-installs test-slow test-container clean

quickstart: $(READY)
	rm -rf evalmode-quickstart
	$(BIN)/evalmode quickstart

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadfile

check: $(READY) check-protos
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py tests/test_documents.py

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

protos: $(READY)
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=. --pyi_out=. --grpc_python_out=. protos/evalmode/wire/*.proto

# The committed stubs are what the contracts generate.
check-protos: $(READY)
	out=$$(mktemp -d) && trap "rm -rf $$out" EXIT && \
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=$$out --pyi_out=$$out --grpc_python_out=$$out protos/evalmode/wire/*.proto && \
	for stub in $$(cd $$out && find . -type f); do diff $$out/$$stub $$stub; done

# The serving half again in an environment of its own, with the next protobuf and without torch.
test-protobuf7:
	$(MAKE) VENV=.venv-protobuf7 EXTRAS=serve,test CONSTRAINTS=constraints-protobuf7.txt .venv-protobuf7/.ready
	.venv-protobuf7/bin/python -m pytest -n auto --dist loadfile tests/serving

# What goes over the wire, once more on the other transport.
test-native: $(READY)
	$(BIN)/python -m pytest -q --transport native tests/conformance \
	  $(foreach name,access client grpcio limits_on_the_wire metrics native open_inference state,tests/serving/test_$(name).py)

# The wheel as a user would install it, bare and with serve, each in an environment of its own.
test-installs: $(READY)
	$(BIN)/python -m pytest -q -m installs tests/installs

# What takes minutes or downloads gigabytes: every other way to install evalmode.
test-slow: $(READY)
	$(BIN)/python -m pytest -q -m slow

# Both images, and the whole story in containers. CONTAINER is docker, podman or a wrapper of one.
test-container:
	CONTAINER=$(CONTAINER) docker/test.sh

EXTRAS ?= all,dev
CONSTRAINTS ?= constraints.txt

$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf .venv .venv-protobuf7 evalmode-quickstart .mypy_cache .ruff_cache .pytest_cache
