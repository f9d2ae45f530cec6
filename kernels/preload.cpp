// Stands in front of functions of OneFlow's: loaded with RTLD_GLOBAL before OneFlow is, its definitions are the ones
// that the dynamic linker finds for their names. They end in OneFlow's own.
#include <dlfcn.h>
#include <link.h>
#include <sched.h>
#include <semaphore.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

// OneFlow's own definition of a name.
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

#define STAND_IN_FOR(name) asm(name) __attribute__((visibility("default")))

#define SCHEDULE_LOOP "_ZN7oneflow14VirtualMachine12ScheduleLoopERKSt8functionIFvvEE"
void schedule_loop(void* self, const void* initializer) STAND_IN_FOR(SCHEDULE_LOOP);

// VirtualMachine::ScheduleLoop. While a graph runs, its thread asks without pause whether the graph is done: it gets
// the processor when nobody else wants it.
void schedule_loop(void* self, const void* initializer) {
  sched_param parameter{};
  sched_setscheduler(0, SCHED_IDLE, &parameter);
  reinterpret_cast<void (*)(void*, const void*)>(original(SCHEDULE_LOOP))(self, initializer);
}

// Calls of graphs that have been put into the queue of those that run.
static sem_t enqueued_graphs = [] {
  sem_t made;
  sem_init(&made, 0, 0);
  return made;
}();

#define ENQUEUE_GRAPH "_ZN7oneflow2vm19LazyJobStreamPolicy14EnqueueNNGraphERKSt10shared_ptrINS_9NNGraphIfEE"
void enqueue_graph(void* self, const void* graph) STAND_IN_FOR(ENQUEUE_GRAPH);

// LazyJobStreamPolicy::EnqueueNNGraph. OneFlow calls it after it has started the graph, whose last act is to take
// itself out of the queue: a graph that is done by then takes itself out of an empty one, and the process dies.
void enqueue_graph(void* self, const void* graph) {
  reinterpret_cast<void (*)(void*, const void*)>(original(ENQUEUE_GRAPH))(self, graph);
  sem_post(&enqueued_graphs);
}

#define DEQUEUE_GRAPH "_ZN7oneflow2vm19LazyJobStreamPolicy14DequeueNNGraphEv"
void dequeue_graph(void* self) STAND_IN_FOR(DEQUEUE_GRAPH);

// LazyJobStreamPolicy::DequeueNNGraph: waits for the above.
void dequeue_graph(void* self) {
  while (sem_wait(&enqueued_graphs) != 0) {}
  reinterpret_cast<void (*)(void*)>(original(DEQUEUE_GRAPH))(self);
}
