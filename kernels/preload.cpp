// Stands in front of a function of OneFlow's: loaded with RTLD_GLOBAL before OneFlow is, its definition is the one
// that the dynamic linker finds for the name.
#include <dlfcn.h>
#include <link.h>
#include <sched.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#define SCHEDULE_LOOP "_ZN7oneflow14VirtualMachine12ScheduleLoopERKSt8functionIFvvEE"

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

// oneflow::VirtualMachine::ScheduleLoop. While a graph runs, its thread asks without pause whether the graph is done:
// it gets the processor when nobody else wants it.
__attribute__((visibility("default"))) void schedule_loop(void* self, const void* initializer) asm(SCHEDULE_LOOP);
void schedule_loop(void* self, const void* initializer) {
  sched_param parameter{};
  sched_setscheduler(0, SCHED_IDLE, &parameter);
  reinterpret_cast<void (*)(void*, const void*)>(original(SCHEDULE_LOOP))(self, initializer);
}
