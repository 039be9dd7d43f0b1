PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# fresh memory is slow on some machines; this keeps what torch has freed once
export MALLOC_MMAP_MAX_ := 0
export MALLOC_TRIM_THRESHOLD_ := -1
export MALLOC_TOP_PAD_ := 268435456
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test browser lint types bench clean

demo: $(VENV)/demo.stamp
	$(VENV)/bin/mmn demo

test: $(VENV)/dev.stamp browser
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile --ignore=tests/families
	OMP_NUM_THREADS=1 $(RUN) -m pytest tests/families

lint: $(VENV)/dev.stamp
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check

types: $(VENV)/dev.stamp
	$(RUN) -m pyright --pythonpath $(RUN)

bench: $(VENV)/measure.stamp
	$(RUN) -m bench.overhead
	$(RUN) -m bench.looking
	$(RUN) -m bench.meaning
	$(RUN) -m bench.runs
	$(RUN) -m bench.edit

# the tests of the report open it in Chromium; where it cannot be installed they are skipped, and say so
browser:
	@command -v chromium chromium-browser google-chrome >/dev/null || sh tests/browser/install.sh

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache demo-output

$(VENV)/demo.stamp: pyproject.toml constraints.txt requirements/demo.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]'
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/demo.txt
	touch $@

$(VENV)/dev.stamp: $(VENV)/measure.stamp
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/measure.stamp: $(VENV)/demo.stamp requirements/measure.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[measure]'
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/measure.txt
	touch $@
