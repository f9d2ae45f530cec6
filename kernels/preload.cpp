// Replaces functions of OneFlow. This library is loaded with RTLD_GLOBAL before OneFlow, so the dynamic linker resolves
// their names to the definitions here, which call OneFlow's.
#include <dlfcn.h>
#include <link.h>
#include <malloc.h>
#include <semaphore.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <unordered_map>

namespace {

// Returns OneFlow's definition of a symbol.
void* original(const char* name) {
  static void* const library = [] {
    const char* path = nullptr;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* found) {
          if (std::strstr(info->dlpi_name, "/liboneflow-") == nullptr) return 0;
          *static_cast<const char**>(found) = info->dlpi_name;
          return 1;
        },
        &path);
    return path == nullptr ? nullptr : dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
  }();
  void* function = library == nullptr ? nullptr : dlsym(library, name);
  if (function == nullptr) {
    std::fprintf(stderr, "%s: not found in OneFlow\n", name);
    std::abort();
  }
  return function;
}

}  // namespace

// Aligned at every optimisation level: an odd address in a pointer to a member function marks a virtual function.
#define STAND_IN_FOR(name) asm(name) __attribute__((visibility("default"), aligned(16)))

#define SCHEDULE_LOOP "_ZN7oneflow14VirtualMachine12ScheduleLoopERKSt8functionIFvvEE"
void schedule_loop(void* self, const void* initializer) STAND_IN_FOR(SCHEDULE_LOOP);

// Whether to apply the changes that make a CPU run fast. False for a run on a GPU.
static bool tunes_cpu = true;

extern "C" __attribute__((visibility("default"))) void bert_tune_cpu(bool on) {
  tunes_cpu = on;
  // Compiling a graph allocates and frees millions of small pieces of memory. glibc collects those that are freed in lists
  // that it merges again and again, at each large piece; without the lists it merges each piece once.
  if (on) mallopt(M_MXFAST, 0);
}

// VirtualMachine::ScheduleLoop. Its thread polls without pause while a graph runs, so it gets the lowest nice level.
// SCHED_IDLE is too low: on a busy machine the graph would wait for this thread.
void schedule_loop(void* self, const void* initializer) {
  constexpr int kThisThread = 0, kLeast = 19;
  if (tunes_cpu) { setpriority(PRIO_PROCESS, kThisThread, kLeast); }
  reinterpret_cast<void (*)(void*, const void*)>(original(SCHEDULE_LOOP))(self, initializer);
}

// Counts the graph calls that have been added to the queue of running graphs.
static sem_t enqueued_graphs = [] {
  sem_t made;
  sem_init(&made, 0, 0);
  return made;
}();

#define ENQUEUE_GRAPH "_ZN7oneflow2vm19LazyJobStreamPolicy14EnqueueNNGraphERKSt10shared_ptrINS_9NNGraphIfEE"
void enqueue_graph(void* self, const void* graph) STAND_IN_FOR(ENQUEUE_GRAPH);

// LazyJobStreamPolicy::EnqueueNNGraph. OneFlow calls it after starting the graph. A graph that has already finished would
// remove itself from an empty queue, which aborts the process.
void enqueue_graph(void* self, const void* graph) {
  reinterpret_cast<void (*)(void*, const void*)>(original(ENQUEUE_GRAPH))(self, graph);
  sem_post(&enqueued_graphs);
}

#define DEQUEUE_GRAPH "_ZN7oneflow2vm19LazyJobStreamPolicy14DequeueNNGraphEv"
void dequeue_graph(void* self) STAND_IN_FOR(DEQUEUE_GRAPH);

// LazyJobStreamPolicy::DequeueNNGraph. Waits for enqueue_graph.
void dequeue_graph(void* self) {
  while (sem_wait(&enqueued_graphs) != 0) {}
  reinterpret_cast<void (*)(void*)>(original(DEQUEUE_GRAPH))(self);
}

#define DELETE_READS "_ZN7oneflow7CommNet17DeleteActorReadIdEPv"
void delete_reads(void* self, void* reads) STAND_IN_FOR(DELETE_READS);

// CommNet::DeleteActorReadId, which deletes the read context of an actor that ends. The thread that called the actor back
// may still use the context: OneFlow then aborts because it is not empty, or deletes a mutex that the thread holds. So it
// is not deleted; it leaks a hundred bytes per actor.
void delete_reads(void*, void*) {}

// Changes the plan of a graph, an oneflow::Plan, before memory is assigned to its arrays. May be null.
static void (*plan_change)(void* plan) = nullptr;

extern "C" __attribute__((visibility("default"))) void bert_change_plans(void (*change)(void* plan)) {
  plan_change = change;
}

#define PLAN_MEMORY \
  "_ZN7oneflow22IntraJobMemSharingUtil30InferMemBlockId4MemReusedRegstEPNS_4PlanERKSt8functionIFbRKSsS5_EE"
void plan_memory(void* plan, const void* is_reachable) STAND_IN_FOR(PLAN_MEMORY);

// IntraJobMemSharingUtil::InferMemBlockId4MemReusedRegst, which assigns memory to the arrays of GPUs.
void plan_memory(void* plan, const void* is_reachable) {
  if (plan_change != nullptr) plan_change(plan);
  reinterpret_cast<void (*)(void*, const void*)>(original(PLAN_MEMORY))(plan, is_reachable);
}

// Receives the plan of a graph and the graph's name, an std::string, before memory is allocated. May be null.
static void (*plan_listener)(const void* plan, const void* graph) = nullptr;

extern "C" __attribute__((visibility("default"))) void bert_tell_plans(void (*tell)(const void*, const void*)) {
  plan_listener = tell;
}

#define LOG_PLAN "_ZN7oneflow8PlanUtil13PlanMemoryLogEPNS_4PlanERKSs"
void log_plan(void* plan, const void* graph) STAND_IN_FOR(LOG_PLAN);

// PlanUtil::PlanMemoryLog, which writes the memory needs of a plan to OneFlow's log.
void log_plan(void* plan, const void* graph) {
  if (plan_listener != nullptr) plan_listener(plan, graph);
  reinterpret_cast<void (*)(void*, const void*)>(original(LOG_PLAN))(plan, graph);
}

// Selects, from the gradients of a graph with a scaled loss (a std::unordered_map), those to check for overflow. If null,
// OneFlow checks all gradients and divides them by the scale.
static const void* (*gradient_choice)(const void* gradients) = nullptr;

extern "C" __attribute__((visibility("default"))) void bert_choose_gradients(const void* (*choose)(const void*)) {
  gradient_choice = choose;
}

#define OF_GRADIENTS \
  "St13unordered_mapINS_13LogicalBlobIdES8_St4hashIS8_ESt8equal_toIS8_ESaISt4pairIKS8_S8_EEE"
#define DIVIDE_GRADIENTS \
  "_ZN7oneflow25ScaleModelDiffByLossScaleEPNS_10JobPassCtxERKNS_7OpGraphEPNS_10JobBuilderEP" OF_GRADIENTS
void divide_gradients(void* context, const void* graph, void* job, void* gradients) STAND_IN_FOR(DIVIDE_GRADIENTS);

// ScaleModelDiffByLossScale, which divides each gradient by the loss scale, with one kernel per gradient. Skipped here,
// because clipping divides them (training/optimizer.py).
void divide_gradients(void* context, const void* graph, void* job, void* gradients) {
  if (gradient_choice != nullptr) return;
  reinterpret_cast<void (*)(void*, const void*, void*, void*)>(original(DIVIDE_GRADIENTS))(context, graph, job,
                                                                                           gradients);
}

#define COUNT_NOT_FINITE \
  "_ZN7oneflow22CountNotFiniteIfNeededEPNS_10JobPassCtxERKNS_7OpGraphEPNS_10JobBuilderERK" OF_GRADIENTS
void* count_not_finite(void* result, void* context, const void* graph, void* job, const void* gradients)
    STAND_IN_FOR(COUNT_NOT_FINITE);

// CountNotFiniteIfNeeded, which returns a Maybe<void> through `result`. It reads its gradients before the update, so each
// of them needs a kernel for scaling. One gradient is enough: clipping makes all of them NaN if any is not finite.
void* count_not_finite(void* result, void* context, const void* graph, void* job, const void* gradients) {
  if (gradient_choice != nullptr) gradients = gradient_choice(gradients);
  return reinterpret_cast<void* (*)(void*, void*, const void*, void*, const void*)>(original(COUNT_NOT_FINITE))(
      result, context, graph, job, gradients);
}

// What the plugin does instead of building each graph of operators anew (plugin_graphs.cpp). May be null.
using BuildGraph = void*(void* result, void* graph, const void* job);
static void* (*graph_builder)(BuildGraph* own, void* result, void* graph, const void* job) = nullptr;
static void (*graph_keeper)(void* graph) = nullptr;
static void (*dumped_graph_keeper)(void* graph, const void* job) = nullptr;
static void (*graph_end)() = nullptr;

extern "C" __attribute__((visibility("default"))) void bert_keep_graphs(
    decltype(graph_builder) build, decltype(graph_keeper) keep, decltype(dumped_graph_keeper) keep_dumped,
    decltype(graph_end) forget) {
  graph_builder = build;
  graph_keeper = keep;
  dumped_graph_keeper = keep_dumped;
  graph_end = forget;
}

#define BUILD_GRAPH "_ZN7oneflow7OpGraph4InitERKNS_3JobE"
void* build_graph(void* result, void* graph, const void* job) STAND_IN_FOR(BUILD_GRAPH);

// OpGraph::Init, which returns a Maybe<void> through `result`.
void* build_graph(void* result, void* graph, const void* job) {
  const auto own = reinterpret_cast<BuildGraph*>(original(BUILD_GRAPH));
  return graph_builder != nullptr ? graph_builder(own, result, graph, job) : own(result, graph, job);
}

#define DESTROY_GRAPH "_ZN7oneflow7OpGraphD1Ev"
void destroy_graph(void* graph) STAND_IN_FOR(DESTROY_GRAPH);

// OpGraph::~OpGraph.
void destroy_graph(void* graph) {
  if (graph_keeper != nullptr) graph_keeper(graph);
  reinterpret_cast<void (*)(void*)>(original(DESTROY_GRAPH))(graph);
}

#define DUMP_GRAPH "_ZNK7oneflow7OpGraph18DumpNdSbpSignatureEPNS_3JobE"
void dump_graph(void* graph, void* job) STAND_IN_FOR(DUMP_GRAPH);

// OpGraph::DumpNdSbpSignature.
void dump_graph(void* graph, void* job) {
  reinterpret_cast<void (*)(void*, void*)>(original(DUMP_GRAPH))(graph, job);
  if (dumped_graph_keeper != nullptr) dumped_graph_keeper(graph, job);
}

#define COMPILE "_ZN7oneflow7NNGraph21CompileAndInitRuntimeEv"
void* compile(void* result, void* graph) STAND_IN_FOR(COMPILE);

// NNGraph::CompileAndInitRuntime, which returns a Maybe<void> through `result`. It builds the last graph of a job.
void* compile(void* result, void* graph) {
  reinterpret_cast<void* (*)(void*, void*)>(original(COMPILE))(result, graph);
  if (graph_end != nullptr) graph_end();
  return result;
}

// Memory mapped by device_alloc: address -> size.
static std::unordered_map<void*, size_t>* const mapped = new std::unordered_map<void*, size_t>;
static std::mutex mapped_mutex;

// Maps `size` bytes of zeros, which take up memory on first touch. Returns null on failure. Without huge pages: with
// fragmented memory, compaction at first touch costs up to 3 seconds of the first step.
static void* map_zeros(size_t size) {
  void* zeros = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return zeros == MAP_FAILED ? nullptr : zeros;
}

#define DEVICE_ALLOC "_ZN7oneflow2ep9CpuDevice5AllocERKNS0_17AllocationOptionsEPPvm"
void* device_alloc(void* result, void* self, const int* options, void** pointer, size_t size) STAND_IN_FOR(DEVICE_ALLOC);

// CpuDevice::Alloc, which returns a Maybe<void> through `result` and fills the memory with zeros. Mapped pages are zero
// already and take up no memory before they are used.
void* device_alloc(void* result, void* self, const int* options, void** pointer, size_t size) {
  constexpr size_t kSmallest = size_t{1} << 21;
  const auto own = reinterpret_cast<void* (*)(void*, void*, const int*, void**, size_t)>(original(DEVICE_ALLOC));
  const int pinned_device_type = *options;  // the first member of AllocationOptions; 0 is none
  void* zeros = nullptr;
  if (tunes_cpu && size >= kSmallest && pinned_device_type == 0) zeros = map_zeros(size);
  if (zeros == nullptr) return own(result, self, options, pointer, size);
  // OneFlow's function creates the result.
  own(result, self, options, pointer, 1);
  std::free(*pointer);
  *pointer = zeros;
  std::lock_guard<std::mutex> lock(mapped_mutex);
  mapped->emplace(zeros, size);
  return result;
}

#define DEVICE_FREE "_ZN7oneflow2ep9CpuDevice4FreeERKNS0_17AllocationOptionsEPv"
void device_free(void* self, const int* options, void* pointer) STAND_IN_FOR(DEVICE_FREE);

// CpuDevice::Free.
void device_free(void* self, const int* options, void* pointer) {
  {
    std::lock_guard<std::mutex> lock(mapped_mutex);
    const auto found = mapped->find(pointer);
    if (found != mapped->end()) {
      munmap(pointer, found->second);
      mapped->erase(found);
      return;
    }
  }
  reinterpret_cast<void (*)(void*, const int*, void*)>(original(DEVICE_FREE))(self, options, pointer);
}
