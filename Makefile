# Every target sets up its environment; it needs python3 3.11+, make and a package index.
# `make quickstart` shows the main workflow, `make check test` is what CI runs. The rules for code and documents are tests.

PYTHON ?= python3
CONTAINER ?= docker
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: quickstart test check format protos check-protos test-native test-protobuf7 test-installs test-manifests test-proxies test-slow test-container docs clean

quickstart: $(READY)
	rm -rf evalmode-quickstart
	$(BIN)/evalmode quickstart

# One thread for a worker, which has a core for itself. In the order of the files, whose last ones take little time: by
# the number of tests in a file, the long commands of tests/e2e would come last, and cores would wait for one of them.
# The tests of headers fork this process to measure memory, so no other test may have started threads in it.
FORKING = tests/evalmode/images/test_headers.py
test: $(READY)
	$(BIN)/python -m pytest -q $(FORKING)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --ignore $(FORKING) --durations 25

check: $(READY) check-protos
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

protos: $(READY)
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=. --pyi_out=. --grpc_python_out=. protos/evalmode/wire/*.proto

# Fails if the committed stubs differ from generated ones.
check-protos: $(READY)
	out=$$(mktemp -d) && trap "rm -rf $$out" EXIT && \
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=$$out --pyi_out=$$out --grpc_python_out=$$out protos/evalmode/wire/*.proto && \
	for stub in $$(cd $$out && find . -type f); do diff $$out/$$stub $$stub; done

# The tests of the wire protocol.
WIRE = tests/conformance tests/evalmode/client $(foreach name,services/test_access services/test_metrics \
  services/test_open_inference transports/test_grpcio transports/test_limits_on_the_wire transports/test_native \
  transports/test_state,tests/serving/$(name).py)

# The tests of messages and of ONNX files.
MESSAGES = tests/serving/transports/test_messages.py \
  $(addprefix tests/serving/services/,test_classifier.py test_parsers_properties.py) \
  $(addprefix tests/evalmode/,artifact certification runtime/test_model.py)

test-native: $(READY)
	$(BIN)/python -m pytest -q -n auto --dist loadfile --transport native $(WIRE)

# The same in a separate environment with protobuf 7, and those of messages.
test-protobuf7:
	$(MAKE) VENV=.venv-protobuf7 EXTRAS=serve,test CONSTRAINTS=constraints-protobuf7.txt .venv-protobuf7/.ready
	.venv-protobuf7/bin/python -m pytest -q -n auto --dist loadfile $(WIRE) $(MESSAGES)

# The wheel, bare and with serve, each in a separate environment.
test-installs: $(READY)
	$(BIN)/python -m pytest -q --timeout 900 -m installs tests/installs

# The chart and the manifests of deploy/, with the tools of Helm, Kustomize and Kubernetes in a separate environment.
# It needs npm, for the types of ServiceMonitors, and Debian's docker-registry.
DEPLOY = .venv-deploy
MONITORS = @kubernetes-models/prometheus-operator@6.0.0 typescript@5.9.3
test-manifests: $(READY) $(DEPLOY)/.ready
	@$(call install,docker-registry)
	PATH=$(CURDIR)/$(BIN):$$PATH $(DEPLOY)/bin/python -P -m pytest -q -n auto --confcutdir tests/manifests tests/manifests

# The configurations of deploy/proxies. They need nginx, HAProxy and Envoy, which is a Python package, too.
test-proxies: $(READY) $(DEPLOY)/.ready
	@$(call install,nginx haproxy)
	PATH=$$PATH:/usr/sbin:$(CURDIR)/$(DEPLOY)/bin $(BIN)/python -m pytest -q -n auto -m proxies tests/deploy

# install PACKAGES: Debian's packages of programs with their names, unless the programs are there. RUNLEVEL keeps apt from
# starting them as services.
install = for one in $(1); do PATH=$$PATH:/usr/sbin; command -v $$one >/dev/null || \
  RUNLEVEL=1 apt-get install -qy --no-install-recommends $$one >/dev/null || { echo "install $$one" >&2; exit 1; }; done

$(DEPLOY)/.ready: tests/manifests/requirements.txt
	@command -v npm >/dev/null || { echo "install npm" >&2; exit 1; }
	$(PYTHON) -m venv $(DEPLOY)
	$(DEPLOY)/bin/python -m pip install --quiet --requirement tests/manifests/requirements.txt
	npm install --silent --no-fund --no-audit --prefix $(DEPLOY)/node $(MONITORS)
	touch $@

# Tests that take minutes or download gigabytes: the other ways to install evalmode.
test-slow: $(READY)
	$(BIN)/python -m pytest -q --timeout 900 -m slow

# Builds the site of the documents into site/, in a separate environment: warnings are errors, and every link is followed.
DOCS = .venv-docs
docs:
	$(MAKE) VENV=$(DOCS) EXTRAS=docs $(DOCS)/.ready
	$(DOCS)/bin/python docs/site.py
	$(DOCS)/bin/python -P -m pytest -q --noconftest -m docs tests/test_site.py

# Builds both images and tests them. CONTAINER is docker, podman or a wrapper of one.
test-container:
	CONTAINER=$(CONTAINER) docker/test.sh

EXTRAS ?= all,dev
CONSTRAINTS ?= constraints.txt

$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf .venv .venv-protobuf7 .venv-deploy .venv-docs .site site evalmode-quickstart .mypy_cache .ruff_cache .pytest_cache
