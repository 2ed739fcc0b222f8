# make demo   set everything up and explain a real photo
# make test   set everything up and run every check

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PHOTO ?= examples/temple.jpg
PHOTO_NAME = $(basename $(notdir $(PHOTO)))
# -e keeps the checkout in use, so only what is listed here makes an installation stale.
SETUP := pyproject.toml constraints.txt src/vit_explain/_version.py

.PHONY: help demo test slow peers zoo lint format docs bench constraints clean

help:
	@echo "make demo    install, then explain $(PHOTO) with the bundled model; pictures in demo/"
	@echo "make test    install, then lint, type check and test"
	@echo "make slow    the tests that take minutes"
	@echo "make peers   the same maps as other packages give, which this installs"
	@echo "make zoo     what of every model can be explained, into docs/model-support.md; takes an hour;"
	@echo "             make zoo PARTS=libraries without timm's, in minutes"
	@echo "make bench   speed and memory beside the plain model, the original script and other packages;"
	@echo "             make bench PARTS=\"speed memory\" for some of the tables"
	@echo "make docs    write docs/methods.md and docs/metrics.md from the methods and metrics themselves"
	@echo "make lint | format | constraints | clean"

demo: $(VENV)/.installed
	$(BIN)/vit-explain explain $(PHOTO) --out demo/rollout
	@echo
	$(BIN)/vit-explain explain $(PHOTO) --target top1 --head-fusion max --discard-ratio 0.5 --out demo/gradient_rollout
	@echo
	@echo "Where the model looked:              demo/rollout/$(PHOTO_NAME)/side_by_side.png"
	@echo "What spoke for the class it chose:   demo/gradient_rollout/$(PHOTO_NAME)/side_by_side.png"

# A process a core, of one thread each: small models gain nothing by more.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

peers: $(VENV)/.bench
	$(BIN)/python -m pytest -m peers tests/peers

zoo: $(VENV)/.dev
	$(BIN)/python benchmarks/zoo.py $(if $(PARTS),--parts $(PARTS))

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed
	@mkdir -p docs
	$(BIN)/vit-explain methods --markdown > docs/methods.md.part
	@mv docs/methods.md.part docs/methods.md
	$(BIN)/vit-explain metrics --markdown > docs/metrics.md.part
	@mv docs/metrics.md.part docs/metrics.md

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/bench.py $(PARTS)

# The newest versions that fit together, for every supported Python; names and versions only. Without open_clip: one of
# the packages to compare with takes an old one alone, so the tests and the benchmarks get different ones.
constraints: $(VENV)/.dev
	echo 'open-clip-torch>=3.0' > $(VENV)/overrides.txt
	echo uv | $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.10 --extra dev --extra bench \
	    --override $(VENV)/overrides.txt --no-emit-package open-clip-torch \
	    --no-header --no-annotate pyproject.toml - --output-file constraints.txt

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment, with uv in it where it can be had: it installs in half a minute what takes pip several.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "vit-explain needs Python 3.10 or later; name one: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "Python cannot make environments here; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv || \
	    echo "uv could not be installed; pip does it, in a few minutes"
	@touch $@

install = if [ -x $(BIN)/uv ]; then $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '$(1)'; \
    else $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '$(1)'; fi

$(VENV)/.installed: $(VENV)/.created $(SETUP)
	@echo "Installing vit-explain and what it needs (5.5 GB, most of it torch) into $(VENV) ..."
	@$(call install,.)
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@echo "Installing what the tests need ..."
	@$(call install,.[dev])
	@touch $@

$(VENV)/.bench: $(VENV)/.installed
	@echo "Installing the packages to compare with ..."
	@$(call install,.[bench])
	@touch $@
