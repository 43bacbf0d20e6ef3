# Two commands set up everything: `make demo` and `make test`.

# A pyenv shim named python3.11 may exist and still not run, so it is asked, not looked up.
PYTHON ?= $(shell python3.11 -c 'import sys; print(sys.executable)' 2>/dev/null || command -v python3)
TORCH ?= torch==2.13.0
BIN := .venv/bin
STAMP := .venv/.fresco-trt
DEMO := engines/flux-tiny-256x256-3stage

.PHONY: help venv demo serve test check fuzz fuzz-http stress bench train-demo train-flux-tiny train-kontext train-video clean

help:
	@echo "make demo    build the bundled demo model's engines and draw a picture into demo-out/"
	@echo "make serve   serve the demo model on http://127.0.0.1:8000, with a page to try it"
	@echo "make test    lint, type-check and run every test"
	@echo "make check   lint and type-check only"
	@echo "make fuzz    open 3,000 hostile bundles, for most of an hour, and store what became of them"
	@echo "make stress  load a server beyond what it can carry, kill it, end it, and store what clients got"
	@echo "make fuzz-http  send 10,000 malformed requests to the server, and store what became of them"
	@echo "make bench   measure speed and quality side by side, in short, into bench-out/"
	@echo "make train-demo  train the next demo model in MINUTES=12 on DEVICE=cuda, into training-out/demo/"
	@echo "make train-flux-tiny  train the demo model that ships from nothing, for hours, into training-out/"
	@echo "make train-kontext  train the demo model to edit, for hours, into training-out/kontext/"
	@echo "make train-video  train the video demo from nothing, for hours, into training-out/video/"
	@echo "make venv    only create .venv with everything that the others need"
	@echo "make clean   remove caches and what 'make demo' wrote"

venv: $(STAMP)

# torch comes first and pinned: any later package asking for "torch" would otherwise take the
# newest build, which is the CUDA one of several gigabytes. With a GPU: make venv TORCH=torch
$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("fresco-trt needs Python 3.11 or newer: pass PYTHON=" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@$(BIN)/python -m pip install --quiet --editable ".[rtx]" || \
		echo "warning: TensorRT-RTX has no package for this platform; everything but the tensorrt-rtx backend works" >&2
	touch $@

demo: venv
	$(BIN)/fresco-trt build --model flux-tiny --stages 3
	$(BIN)/fresco-trt generate --engines $(DEMO) --prompt "a bell on a plain blue background" \
		--seed 7 --preview --out demo-out/bell.png

# A bundle that is there is reused.
serve: venv
	$(BIN)/fresco-trt build --model flux-tiny --stages 3
	$(BIN)/fresco-trt serve --engines $(DEMO)

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One thread a process: the work is spread over the cores by the tests, file by file. The types are
# checked beside them: before the tests, mypy would keep one core busy and leave the others idle.
test: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 \
		--dist loadfile --no-loadscope-reorder --durations 20 --durations-min 20

# Goes on where it was killed; 'rm -r fuzz-out' begins anew.
fuzz: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.hostile.fuzz --attempts 3000 \
		--work fuzz-out --out bench/results/fuzz.json

# Fails if a law is broken: a wrong picture, a lost request, memory that grows, a file left behind.
stress: venv
	$(BIN)/python -m bench.stress

fuzz-http: venv
	$(BIN)/python -m tests.serve.fuzz --requests 10000 --out bench/results/fuzz-http.json

$(STAMP)-bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	touch $@

bench: $(STAMP)-bench
	$(BIN)/fresco-trt bench --model flux-tiny --quick --out bench-out

# Goes on where it was killed; with more minutes it trains on.
DEVICE ?= cuda
MINUTES ?= 12
train-demo: venv
	test -f training-out/drawings.zip || $(BIN)/python -m training.scenes drawings
	$(BIN)/python -m training.demo --device $(DEVICE) --minutes $(MINUTES) \
		--out training-out/demo --store training-out/demo-weights

# Each line goes on where it was killed; what ships was trained on from such a folder on a GPU.
train-flux-tiny: venv
	$(BIN)/python -m training.train vae --work training-out
	$(BIN)/python -m training.train base --work training-out
	$(BIN)/python -m training.train guided --work training-out
	$(BIN)/python -m training.train export --work training-out training-out/flux-tiny

train-kontext: venv
	$(BIN)/python -m training.kontext --minutes 240 --out training-out/kontext

train-video: venv
	$(BIN)/python -m training.video --minutes 400 --codec-minutes 120 --out training-out/video

clean:
	rm -rf demo-out fuzz-out $(DEMO) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find fresco_trt bench training tests -name __pycache__ -type d -prune -exec rm -rf {} +
