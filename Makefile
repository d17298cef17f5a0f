# make train   train a byte-level LongNet on real text (ARGS="..." passes options to `longnet train`)
# make train-distributed   the same on 2 processes that share each context, shortly (PROCESSES=4 for 4)
# make test    run the whole test suite
# make demos   run every demo (ARGS=--quick: each in under 2 minutes); pictures and figures in demos/output
# make setup   only build .venv
# make check   ruff and mypy

PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
PROCESSES ?= 2

.PHONY: train train-distributed test demos setup check

train: setup
	$(BIN)/longnet train $(ARGS)

train-distributed: setup
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/torchrun --standalone --nproc-per-node $(PROCESSES) \
		-m dilated_attention_pytorch.train -- --context-parallel $(PROCESSES) --steps 60 $(ARGS)

test: setup
	$(BIN)/python -m pytest -n auto --dist loadgroup --durations=10 $(ARGS)

# KINETO_LOG_LEVEL: without it PyTorch's profiler writes two lines whenever memory is measured.
demos: setup
	@for demo in demos/*.py; do \
		echo "== $$demo"; \
		KINETO_LOG_LEVEL=99 $(BIN)/python "$$demo" --output demos/output $(ARGS) || \
			{ status=$$?; echo "error: $$demo ended with status $$status" >&2; exit $$status; }; \
	done

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: .venv/.installed

.venv/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: Python 3.10 or newer is needed, $(PYTHON) is $$($(PYTHON) -V); set PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "error: $(PYTHON) has no venv module: apt-get install python3-venv" >&2; exit 2; }
	@echo "setup: making .venv with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv .venv
	@echo "setup: installing PyTorch and the rest of requirements.txt into .venv: up to 0.5 GB to download" \
		"with PyTorch's CPU build, several GB with its CUDA build"
	@$(BIN)/pip install --quiet -r requirements.txt
	@echo "setup: installing this checkout into .venv"
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
