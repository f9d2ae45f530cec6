# The native library of CPU kernels: see docs/kernels.md. tools/build_kernels.py builds it, with the compiler in CXX, and
# engine/native.py finds what is built.

export CXX

BUILD_KERNELS := $(PYTHON) tools/build_kernels.py
KERNEL_SETS := baseline avx2 avx512

.PHONY: kernels kernels-if-possible all-kernels-if-possible kernels-clang kernels-sanitize bench soak clean-kernels

kernels: setup ## Build the library of CPU kernels for all instruction sets (needs g++)
	@$(BUILD_KERNELS) $(KERNEL_SETS)

# Without a compiler everything works, slowly. The instruction set of this processor alone is the quickest.
kernels-if-possible: setup
	@$(BUILD_KERNELS) --if_possible

all-kernels-if-possible: setup
	@$(BUILD_KERNELS) $(KERNEL_SETS) --if_possible

CLANG := .cache/kernels-clang

kernels-clang: setup ## Build the kernels with clang, and run their tests on that build
	@if ! command -v clang++ >/dev/null; then echo "make kernels-clang: skipped: there is no clang++"; exit 0; fi; \
	CXX=clang++ BERT_KERNELS_FOLDER=$(CLANG) $(BUILD_KERNELS) && \
	BERT_KERNELS= BERT_KERNELS_FOLDER=$(CLANG) $(PYTHON) -m pytest -q -p no:cacheprovider tests/engine/test_kernels.py

# In folders of their own. NumPy's BLAS is not compiled for the sanitizers, so it gets no threads. OneFlow is not either: see
# docs/kernels.md for what is left out.
SANITIZED := .cache/kernels-sanitized
sanitizer_library = $(shell $(CXX) -print-file-name=$(1))
sanitized = OPENBLAS_NUM_THREADS=1 BERT_KERNELS= BERT_KERNELS_FOLDER=$(SANITIZED)/$(1) LD_PRELOAD="$(call sanitizer_library,$(2)) $(call sanitizer_library,libstdc++.so.6)"
KERNEL_TESTS := $(PYTHON) -m pytest -q -p no:cacheprovider tests/engine/test_kernels.py tests/records/test_record_reader.py
# The operators within OneFlow, forward and backward, eagerly and in graphs.
OPERATOR_RUN = PYTHONPATH=.:tests/helpers $(PYTHON) tests/helpers/kernel_operators.py $(SANITIZED)/results.npz

.PHONY: kernels-sanitize-address kernels-sanitize-undefined kernels-sanitize-thread

kernels-sanitize: kernels-sanitize-address kernels-sanitize-undefined kernels-sanitize-thread ## Run the kernels' tests and operators under the address, undefined and thread sanitizers

kernels-sanitize-address: export ASAN_OPTIONS := detect_leaks=0:protect_shadow_gap=0:detect_odr_violation=0
kernels-sanitize-address: setup
	@echo "address sanitizer:" && BERT_KERNELS_FOLDER=$(SANITIZED)/address $(BUILD_KERNELS) --sanitizer address
	@$(call sanitized,address,libasan.so) $(KERNEL_TESTS)
	@$(call sanitized,address,libasan.so) $(OPERATOR_RUN)

kernels-sanitize-undefined: export UBSAN_OPTIONS := print_stacktrace=1:halt_on_error=1
kernels-sanitize-undefined: setup
	@echo "undefined sanitizer:" && BERT_KERNELS_FOLDER=$(SANITIZED)/undefined $(BUILD_KERNELS) --sanitizer undefined
	@$(call sanitized,undefined,libubsan.so) $(KERNEL_TESTS)
	@$(call sanitized,undefined,libubsan.so) $(OPERATOR_RUN)

# Without the plugin: of what OneFlow's threads do it sees one half only.
kernels-sanitize-thread: export TSAN_OPTIONS := halt_on_error=1:ignore_noninstrumented_modules=1:suppressions=kernels/tsan.supp
kernels-sanitize-thread: setup
	@echo "thread sanitizer:" && BERT_KERNELS_FOLDER=$(SANITIZED)/thread $(BUILD_KERNELS) --sanitizer thread --plugin False
	@$(call sanitized,thread,libtsan.so) $(KERNEL_TESTS)

bench: kernels ## Time training and prediction here, in Transformers, PyTorch and TensorFlow (TABLE=step: a few minutes; all: an hour or two)
	$(PYTHON) benchmarks/bench.py --table=$(or $(TABLE),all)

SOAK_MINUTES := 60
SOAK_SAVES := 1000
SOAK_KILLS := 200

soak: kernels ## Train for SOAK_MINUTES, save and load SOAK_SAVES snapshots, kill and resume a run SOAK_KILLS times
	$(PYTHON) benchmarks/soak.py --minutes=$(SOAK_MINUTES) --saves=$(SOAK_SAVES) --kills=$(SOAK_KILLS)

clean-kernels:
	rm -rf kernels/build
