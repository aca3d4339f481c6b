# Two commands do everything: `make repro` runs the pipeline, `make test` the tests.
# Both first build .venv (once) from the pinned versions in constraints.txt.

PYTHON ?= python3.11
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# On a CPU: keep freed memory rather than return it at every step (a training step took 109 ms without,
# 74 ms with), in huge pages (5 % faster), and let waiting threads sleep after a while (on a busy machine,
# threads that spin for ever made it 2,500 ms). An editable install in compatible mode is found from any
# folder: the other mode loses against an empty package where Python starts beside the clone.
export MALLOC_MMAP_THRESHOLD_ := 4000000000
export MALLOC_TRIM_THRESHOLD_ := 8000000000
export MALLOC_TOP_PAD_ := 100000000
export GOMP_SPINCOUNT := 20000
export GLIBC_TUNABLES := glibc.malloc.hugetlb=1
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
PULL := data.dvc $(wildcard pretrained/*/*.dvc) # from the remote inside the repository

.PHONY: help repro test lab notebooks format clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

repro: .venv/installed  ## run the pipeline: prepare, train, evaluate and draw what changed
	dvc pull --quiet $(PULL)
	dvc repro

test: .venv/installed  ## check style, run the tests and compare the notebooks' outputs
	ruff check .
	ruff format --check .
	dvc pull --quiet $(PULL)
	pytest -n auto --dist loadfile --no-loadscope-reorder tests
	pytest notebooks # on one core: they use each other's results

lab: .venv/installed  ## open JupyterLab
	dvc pull --quiet $(PULL)
	jupyter lab notebooks

notebooks: .venv/installed  ## run the notebooks as they are committed and keep their outputs
	rm -rf scratch
	jupyter execute --inplace $(NOTEBOOKS)
	jupyter nbconvert --to notebook --inplace --log-level ERROR \
		--CoalesceStreamsPreprocessor.enabled=True $(NOTEBOOKS) # printed output in one piece
	nbstripout --keep-output --keep-count --extra-keys \
		"cell.metadata.execution metadata.language_info.version metadata.widgets" $(NOTEBOOKS)

format: .venv/installed  ## format code and notebooks
	ruff check --fix .
	ruff format .

clean:  ## remove what runs and tests leave behind, but no result
	rm -rf scratch .pytest_cache .ruff_cache

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet pip==25.3 # the resolver that was tested
	.venv/bin/python -m pip install --quiet -c constraints.txt --config-settings editable_mode=compat -e '.[all]'
	touch $@
