# The native library of CPU kernels: see docs/kernels.md. Uses PYTHON and CXX; engine/native.py finds what is built here.
#
# The kernels are compiled once for each instruction set, into libraries of the same name in folders of their own, and
# engine/native.py loads the one that the processor can run. plugin.so gives them to OneFlow.

KERNELS := kernels/build
KERNEL_SETS := baseline avx2 avx512
KERNEL_OBJECTS := $(patsubst kernels/%.cpp,%.o,$(filter-out kernels/plugin%.cpp kernels/preload.cpp,$(wildcard kernels/*.cpp)))
PLUGIN_OBJECTS := $(patsubst kernels/%.cpp,$(KERNELS)/%.o,$(wildcard kernels/plugin*.cpp))

KERNEL_FLAGS_baseline :=
KERNEL_FLAGS_avx2 := -mavx2 -mfma -mbmi -mbmi2 -mf16c -mlzcnt
KERNEL_FLAGS_avx512 := $(KERNEL_FLAGS_avx2) -mavx512f -mavx512bw -mavx512cd -mavx512dq -mavx512vl -mprefer-vector-width=512
KERNEL_FLAGS := -std=c++17 -O3 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math -Wall -Wextra
# With OneFlow's own visibility: the objects that its headers define are shared with it.
PLUGIN_FLAGS := -std=c++17 -O2 -fPIC -w -D_GLIBCXX_USE_CXX11_ABI=0 -DHALF_ENABLE_CPP11_USER_LITERALS=0

# Asked when a recipe runs: before `make setup` there is no Python to ask.
WHEEL = $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
ONEDNN = $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("data"))')

.PHONY: kernels kernels-if-possible kernels-sanitize bench soak clean-kernels

kernels: setup ## Build the library of CPU kernels (needs g++)
	@command -v $(CXX) >/dev/null || { echo "make kernels: error: no C++ compiler ($(CXX)): install g++" >&2; exit 2; }
	@$(MAKE) --no-print-directory $(KERNELS)/preload.so $(KERNELS)/plugin.so $(KERNEL_SETS:%=$(KERNELS)/%/libbert_kernels.so)

# Without a compiler everything works, slowly; engine/native.py says so.
kernels-if-possible: setup
	@if command -v $(CXX) >/dev/null; then $(MAKE) --no-print-directory kernels; fi

# The tests open the library that BERT_SANITIZED_KERNELS names. It has all instructions of this processor.
SANITIZED := .cache/kernels-sanitized
SANITIZERS := address undefined thread
# NumPy's BLAS is not compiled for them, so it gets no threads.
SANITIZER_OPTIONS := OPENBLAS_NUM_THREADS=1 ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
  TSAN_OPTIONS=halt_on_error=1:ignore_noninstrumented_modules=1:suppressions=kernels/tsan.supp

kernels-sanitize: kernels ## Run the kernels' own tests under the address, undefined and thread sanitizers
	@for sanitizer in $(SANITIZERS); do \
	  mkdir -p $(SANITIZED)/$$sanitizer && \
	  $(CXX) $(KERNEL_FLAGS) -march=native -O1 -g -fno-omit-frame-pointer -fsanitize=$$sanitizer -I$(ONEDNN)/include -shared \
	    $(addprefix kernels/,$(KERNEL_OBJECTS:.o=.cpp)) -o $(SANITIZED)/$$sanitizer/libbert_kernels.so -L$(ONEDNN)/lib -ldnnl -lgomp -lpthread && \
	  echo "$$sanitizer sanitizer:" && \
	  case $$sanitizer in address) runtime=libasan.so;; undefined) runtime=libubsan.so;; thread) runtime=libtsan.so;; esac && \
	  env $(SANITIZER_OPTIONS) LD_PRELOAD="$$($(CXX) -print-file-name=$$runtime) $$($(CXX) -print-file-name=libstdc++.so.6)" \
	    BERT_SANITIZED_KERNELS=$(SANITIZED)/$$sanitizer/libbert_kernels.so $(PYTHON) -m pytest -q -p no:cacheprovider tests/engine/test_kernels.py tests/records/test_record_reader.py || exit 1; \
	done

bench: kernels ## Time training and prediction here, in Transformers, PyTorch and TensorFlow (TABLE=step: a few minutes; all: an hour or two)
	$(PYTHON) benchmarks/bench.py --table=$(or $(TABLE),all)

SOAK_MINUTES := 60
SOAK_SAVES := 1000
SOAK_KILLS := 200

soak: kernels ## Train for SOAK_MINUTES, save and load SOAK_SAVES snapshots, kill and resume a run SOAK_KILLS times
	$(PYTHON) benchmarks/soak.py --minutes=$(SOAK_MINUTES) --saves=$(SOAK_SAVES) --kills=$(SOAK_KILLS)

clean-kernels:
	rm -rf $(KERNELS)

# With the checksum by which engine/native.py knows a library that has been damaged since.
PUT_IN_PLACE = sha256sum <$@.tmp | cut -c-64 >$@.sha256 && mv $@.tmp $@

define kernel_set
$$(KERNELS)/$(1)/%.o: kernels/%.cpp $$(wildcard kernels/*.h) make/kernels.mk
	@mkdir -p $$(@D)
	$$(CXX) $$(KERNEL_FLAGS) $$(KERNEL_FLAGS_$(1)) -I$$(ONEDNN)/include -c $$< -o $$@

$$(KERNELS)/$(1)/libbert_kernels.so: $$(KERNEL_OBJECTS:%=$$(KERNELS)/$(1)/%)
	$$(CXX) -shared -Wl,-soname,libbert_kernels.so $$^ -o $$@.tmp -L$$(ONEDNN)/lib -ldnnl -lgomp -lpthread
	@$$(PUT_IN_PLACE)
endef
$(foreach set,$(KERNEL_SETS),$(eval $(call kernel_set,$(set))))

# OneFlow's include folder also holds ancient system headers, which must not come before the real ones: -idirafter.
$(KERNELS)/%.o: kernels/%.cpp $(wildcard kernels/*.h) $(shell find kernels/stand_in -name '*.h') make/kernels.mk
	@mkdir -p $(@D)
	$(CXX) $(PLUGIN_FLAGS) -Ikernels/stand_in -idirafter $(WHEEL)/oneflow/include -c $< -o $@

$(KERNELS)/plugin.so: $(PLUGIN_OBJECTS) $(KERNELS)/baseline/libbert_kernels.so
	$(CXX) -shared $(PLUGIN_OBJECTS) -o $@.tmp -L$(KERNELS)/baseline -lbert_kernels \
	  $(wildcard $(WHEEL)/oneflow.libs/liboneflow-*.so $(WHEEL)/oneflow.libs/libof_protoobj-*.so) -Wl,--allow-shlib-undefined
	@$(PUT_IN_PLACE)

$(KERNELS)/preload.so: kernels/preload.cpp make/kernels.mk
	@mkdir -p $(@D)
	$(CXX) $(KERNEL_FLAGS) -shared $< -o $@.tmp -ldl
	@$(PUT_IN_PLACE)
