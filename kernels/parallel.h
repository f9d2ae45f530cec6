// Threads for loops. One pool a process; loops are cut into chunks that depend on their size only, so that results
// do not depend on the number of threads.
#pragma once
#include <algorithm>
#include <cstdint>

namespace bert {

// Calls function(context, chunk) once for each chunk in [0, chunks), on all threads, and returns when all are done.
// Called from within a chunk, or while another thread's loop runs, it does the work alone.
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

// Rows of `columns` elements that make a chunk of about 64 KiB in float32.
inline int64_t rows_per_chunk(int64_t columns) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, columns)); }

constexpr int64_t kElementsPerChunk = 16384;

// A buffer of at least `count` floats that belongs to the calling thread, until its next call.
float* scratch(int64_t count);

}  // namespace bert
