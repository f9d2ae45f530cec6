// Parallel loops on one thread pool per process. The chunks of a loop depend only on its size, so results do not depend on
// the number of threads.
#pragma once
#include <algorithm>
#include <cstdint>

namespace bert {

// Calls function(context, chunk) once for each chunk in [0, chunks), on all threads, and returns when all are done.
// Within a chunk, or while another thread's loop runs, the calling thread runs all chunks alone.
void run_chunks(int64_t chunks, void (*function)(void* context, int64_t chunk), void* context);

template <typename Body>
void parallel_chunks(int64_t chunks, Body&& body) {
  run_chunks(chunks, [](void* context, int64_t chunk) { (*static_cast<Body*>(context))(chunk); }, &body);
}

// Calls body(begin, end) for consecutive ranges of at most `grain` that cover [0, count).
template <typename Body>
void parallel_for(int64_t count, int64_t grain, Body&& body) {
  parallel_chunks((count + grain - 1) / grain, [&](int64_t chunk) {
    const int64_t begin = chunk * grain;
    body(begin, std::min(begin + grain, count));
  });
}

// Returns the number of rows of `columns` float32 elements in a chunk of about 64 KiB.
inline int64_t rows_per_chunk(int64_t columns) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, columns)); }

constexpr int64_t kElementsPerChunk = 16384;

// Returns a buffer of at least `count` floats, owned by the calling thread and valid until its next call.
float* scratch(int64_t count);

}  // namespace bert
