#include <cstring>

#include "kernels.h"
#include "parallel.h"

namespace {

// Columns of the table that one chunk of the gradient owns: a whole number of cache lines.
constexpr int64_t kColumnsPerChunk = 64;

}  // namespace

void bert_gather(int64_t count, int64_t columns, const float* table, int64_t table_rows, const int64_t* id,
                 int64_t first, float* y) {
  bert::parallel_for(count, bert::rows_per_chunk(columns), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = id[i] - first;
      if (row >= 0 && row < table_rows) {
        std::memcpy(y + i * columns, table + row * columns, columns * sizeof(float));
      } else {
        std::memset(y + i * columns, 0, columns * sizeof(float));
      }
    }
  });
}

void bert_gather_grad(int64_t count, int64_t columns, const float* dy, const int64_t* id, int64_t first, float* table,
                      int64_t table_rows) {
  bert::parallel_for(table_rows * columns, 4 * bert::kElementsPerChunk, [=](int64_t begin, int64_t end) {
    std::memset(table + begin, 0, (end - begin) * sizeof(float));
  });
  // Each chunk has columns of its own, and so no two threads write to one element.
  bert::parallel_for(columns, kColumnsPerChunk, [=](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = id[i] - first;
      if (row < 0 || row >= table_rows) continue;
      float* to = table + row * columns;
      const float* from = dy + i * columns;
      for (int64_t j = begin; j < end; ++j) to[j] += from[j];
    }
  });
}
