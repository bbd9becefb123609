# make demo      everything once: environment, corpus, training, poems, the HMM exercise
# make poet      better poems: 70 minutes' training on two cores, on ten times the text; MINUTES=20 for a third of it
# make page      a page to compose on, in the browser
# make test      the tests, in two minutes; make test-slow the rest of them, make test-all both
# make lint      formatter and linter
# make ablation  the handout's experiment: no positions, no residual connections
# make exercise  for teachers: model.py with the handout's steps left out, and the tests that grade it
#
# PIP_ARGS=…     options for pip, such as another index      PYTHON=…  the Python (3.10+) to build .venv from

PYTHON ?= python3
PIP_ARGS ?=
PY := .venv/bin/python
DATA := data/quansongci
RUN := workdirs/quansongci
SHI := data/shi
POET := workdirs/poet
MINUTES ?= 60
POET_FLAGS ?=
BEGAN := $(shell date +%s)

# $(call step,what it does,commands): says so, and how long it took
step = @echo "== $(1)"; start=$$(date +%s); { $(2); } && echo "   took $$(( $$(date +%s) - start )) s"

# Succeeds if the given Python has a torch that is new enough, which is then kept (a build for your GPU, say).
has_torch = $(1) -c 'import re, importlib.metadata as m, sys; \
	sys.exit([int(n) for n in re.findall(r"\d+", m.version("torch"))[:2]] < [2, 9])' 2>/dev/null

.PHONY: demo poet page test test-slow test-all lint ablation exercise clean
.DELETE_ON_ERROR:

demo: $(RUN)/samples.txt .venv/installed
	@echo "== Ten samples, from $<"
	@cat $<
	$(call step,The HMM exercise and its trellis (workdirs/trellis.png),$(PY) hmm.py --plot workdirs/trellis.png)

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: Python 3.10 or newer is needed; if you have one: make PYTHON=python3.12" >&2; exit 2; }
	$(call step,Virtual environment .venv, test -x $(PY) || $(PYTHON) -m venv .venv \
		$$(if $(call has_torch,$(PYTHON)); then echo --system-site-packages; fi))
	$(call step,Packages of requirements.txt (some gigabytes; minutes the first time), \
		if $(call has_torch,$(PY)); then grep -v '^torch==' requirements.txt; else cat requirements.txt; fi \
			> .venv/requirements.txt && \
		$(PY) -m pip install --disable-pip-version-check $(PIP_ARGS) -r .venv/requirements.txt)
	@touch $@

.venv/installed-page: requirements-page.txt .venv/installed
	$(call step,Packages of requirements-page.txt, \
		$(PY) -m pip install --disable-pip-version-check $(PIP_ARGS) -r requirements-page.txt)
	@touch $@

page: .venv/installed-page $(RUN)/result.json
	@$(PY) -m songci.page

.venv/installed-dev: requirements-dev.txt requirements-page.txt .venv/installed
	$(call step,Packages of requirements-dev.txt, \
		$(PY) -m pip install --disable-pip-version-check $(PIP_ARGS) -r requirements-dev.txt)
	@touch $@

$(DATA)/meta.pkl: | .venv/installed
	$(call step,Corpus: fetch 全宋词 and make the data set in $(DATA),$(PY) prepare.py --data_root $(DATA))

# Training that was interrupted goes on; a finished run is kept. $(call train,folder,flags,flags of a run that begins)
resume_or_overwrite = $$(test -f $(1)/last.pt && echo --resume || echo --overwrite $(2))
train = $(PY) train.py --ckpt_path $(1) $(2) $(call resume_or_overwrite,$(1),$(3))

$(RUN)/result.json: | $(DATA)/meta.pkl
	$(call step,Training at the defaults of the handout,$(call train,$(RUN),--data_root $(DATA)))

$(RUN)_no_pos/result.json: | $(DATA)/meta.pkl
	$(call step,Training without positions,$(call train,$(RUN)_no_pos,--data_root $(DATA) -no_pos))

$(RUN)_no_res/result.json: | $(DATA)/meta.pkl
	$(call step,Training without residual connections,$(call train,$(RUN)_no_res,--data_root $(DATA) -no_res))

$(RUN)/samples.txt: $(RUN)/result.json
	$(call step,Sampling: ten texts that begin with +++清平乐, \
		$(PY) sample.py --data_root $(DATA) --ckpt_path $(RUN) --start +++清平乐 > $@)

poet: $(POET)/samples.txt
	@cat $<
	@echo "== The poet is in $(POET), after $$(( ($$(date +%s) - $(BEGAN)) / 60 )) minutes"

$(SHI)/meta.pkl: | $(DATA)/meta.pkl
	$(call step,More to read: the shi of Tang and Song in $(SHI),$(PY) prepare.py --data_root $(SHI) --vocabulary $(DATA))

# Some 40 % of the minutes, of two cores, are for the shi; 全宋词 gets as many characters in twice the steps.
$(POET)_shi/result.json: | $(SHI)/meta.pkl
	$(call step,Training on shi, \
		$(call train,$(POET)_shi,--model poet --data_root $(SHI) --dropout 0 --batchsize 32 \
			--iters $$(( 75 * $(MINUTES) )) $(POET_FLAGS)))

$(POET)/result.json: $(POET)_shi/result.json | $(DATA)/meta.pkl
	$(call step,Training on ci, \
		$(call train,$(POET),--model poet --data_root $(DATA) --lr 0.005 --muon_lr 0.004 \
			--iters $$(( 170 * $(MINUTES) )) $(POET_FLAGS),--init_from $(POET)_shi))

$(POET)/samples.txt: $(POET)/result.json
	$(call step,Ten poems in form and ten free ones, \
		$(PY) sample.py --data_root $(DATA) --ckpt_path $(POET) --start '+++清平乐\n' --form > $@ && \
		echo "--------------- and free:" >> $@ && \
		$(PY) sample.py --data_root $(DATA) --ckpt_path $(POET) --start '+++清平乐\n' --stop_at_poem_end >> $@)

ablation: $(RUN)/result.json $(RUN)_no_pos/result.json $(RUN)_no_res/result.json
	$(call step,Comparison and docs/images/ablation.png, $(PY) -m songci.evaluate --samples 1000 --out docs/images/ablation.png \
		--ckpt_path $(RUN) $(RUN)_no_pos $(RUN)_no_res)

exercise: .venv/installed
	$(call step,The exercise for a class,$(PY) -m songci.exercise)

# All that the tests write stays in this folder, the caches of matplotlib and Jupyter too.
TMP := $(CURDIR)/.tmp
pytest = mkdir -p $(TMP) && TMPDIR=$(TMP) MPLCONFIGDIR=$(TMP)/matplotlib IPYTHONDIR=$(TMP)/ipython \
	JUPYTER_DATA_DIR=$(TMP)/jupyter JUPYTER_RUNTIME_DIR=$(TMP)/jupyter/runtime \
	$(PY) -m pytest -m "$(1)" -n auto --maxprocesses 4 --dist loadfile

test: .venv/installed-dev
	$(call step,Tests,$(call pytest,not slow))

test-slow: .venv/installed-dev
	$(call step,Slow tests,$(call pytest,slow))

test-all: test test-slow

lint: .venv/installed-dev
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

clean:
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	rm -rf .venv .tmp .pytest_cache .ruff_cache .hypothesis
