// Sums of arrays over the processes, or ranks, of a machine, through memory that they share.
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <vector>

#include "kernels.h"
#include "parallel.h"

namespace bert {
namespace {

// The floats of a piece: what the ranks write and read between two meetings stays in the caches.
constexpr int64_t kPiece = int64_t{1} << 19;
// Slices of a piece begin at multiples of a cache line.
constexpr int64_t kLine = 16;
// How long a rank that waits for others spins before it sleeps.
constexpr auto kSpinTime = std::chrono::microseconds(50);
// A rank that sleeps checks this often whether the others are alive.
constexpr timespec kCheckInterval{1, 0};

// The beginning of the shared memory. The rest are two buffers of pieces, used in turns: what each rank contributes, and the
// sum.
struct Head {
  char token[64];  // by which the caller can tell this memory from any other
  alignas(64) std::atomic<uint32_t> arrived;   // ranks at the current meeting
  alignas(64) std::atomic<uint32_t> meetings;  // that are over
  std::atomic<uint32_t> sleepers;
};
constexpr int64_t kHeadSize = 4096;
static_assert(sizeof(Head) <= kHeadSize && std::atomic<uint32_t>::is_always_lock_free);

struct Range {
  int64_t begin, end;
};

// The arrays to sum, one after the other, as one array.
class Arrays {
 public:
  Arrays(int arrays, const int64_t* count, const float* const* x, float* const* y) : x_(x), y_(y), begins_{0} {
    for (int i = 0; i < arrays; ++i) begins_.push_back(begins_.back() + count[i]);
  }

  int64_t count() const { return begins_.back(); }

  // Calls body(x, y, position, count) for what each array has of a range, in parallel.
  template <typename Body>
  void for_each_part(Range range, Body&& body) const {
    parallel_for(range.end - range.begin, kElementsPerChunk, [&](int64_t begin, int64_t end) {
      int64_t position = range.begin + begin;
      size_t i = std::upper_bound(begins_.begin(), begins_.end(), position) - begins_.begin() - 1;
      for (; position < range.begin + end; ++i) {
        const int64_t size = std::min(begins_[i + 1], range.begin + end) - position;
        const int64_t offset = position - begins_[i];
        body(x_ == nullptr ? nullptr : x_[i] + offset, y_ == nullptr ? nullptr : y_[i] + offset, position, size);
        position += size;
      }
    });
  }

 private:
  const float* const* const x_;
  float* const* const y_;
  std::vector<int64_t> begins_;
};

int64_t pieces_of(int64_t count) { return (count + kPiece - 1) / kPiece; }

// The floats of a rank's slice of a piece; the last one may have fewer.
int64_t slice_size(int64_t piece, int ranks) {
  const int64_t lines = (piece + kLine - 1) / kLine;
  return (lines + ranks - 1) / ranks * kLine;
}

int64_t memory_size(int ranks) { return kHeadSize + 2 * (ranks + 1) * kPiece * static_cast<int64_t>(sizeof(float)); }

// The lock of `rank`, which a process holds as long as it lives: of its byte of the shared memory.
struct flock lock_of(int rank) {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_start = rank;
  lock.l_len = 1;
  return lock;
}

class Group {
 public:
  Group(int file, void* memory, int ranks, int rank)
      : file_(file), ranks_(ranks), rank_(rank), head_(static_cast<Head*>(memory)),
        buffers_(reinterpret_cast<float*>(static_cast<char*>(memory) + kHeadSize)) {}

  // In step k a rank contributes to piece k, sums its slice of piece k - 1 and collects the sums of piece k - 2; then the
  // ranks meet. The buffers of two consecutive pieces differ, so no rank writes what another may still read.
  void sum(const Arrays& arrays) {
    const int64_t pieces = pieces_of(arrays.count());
    for (int64_t step = 0; step < pieces + 2; ++step) {
      if (step < pieces) contribute(arrays, piece_of(arrays, step), step % 2);
      if (step >= 1 && step - 1 < pieces) sum_slice(arrays, piece_of(arrays, step - 1), (step - 1) % 2, nullptr);
      if (step >= 2) collect(arrays, piece_of(arrays, step - 2), (step - 2) % 2);
      meet();
    }
  }

  // The first half of `sum`: writes the slices that this rank sums, one after the other.
  void scatter(const Arrays& arrays, float* slices) {
    const int64_t pieces = pieces_of(arrays.count());
    for (int64_t step = 0; step < pieces + 1; ++step) {
      if (step < pieces) contribute(arrays, piece_of(arrays, step), step % 2);
      if (step >= 1) sum_slice(arrays, piece_of(arrays, step - 1), (step - 1) % 2, &slices);
      meet();
    }
  }

  // The second half of `sum`, from the slices of all ranks.
  void gather(const Arrays& arrays, const float* slices) {
    const int64_t pieces = pieces_of(arrays.count());
    for (int64_t step = 0; step < pieces + 1; ++step) {
      if (step < pieces) share_slice(arrays, piece_of(arrays, step), step % 2, &slices);
      if (step >= 1) collect(arrays, piece_of(arrays, step - 1), (step - 1) % 2);
      meet();
    }
  }

 private:
  static Range piece_of(const Arrays& arrays, int64_t i) {
    return {i * kPiece, std::min((i + 1) * kPiece, arrays.count())};
  }

  // The part of a piece that a rank sums.
  Range slice_of(Range piece, int rank) const {
    const int64_t size = slice_size(piece.end - piece.begin, ranks_);
    return {std::min(piece.begin + rank * size, piece.end), std::min(piece.begin + (rank + 1) * size, piece.end)};
  }

  // The buffers of a piece.
  float* contribution(int64_t buffer, int rank) const { return buffers_ + (buffer * (ranks_ + 1) + rank) * kPiece; }
  float* sums(int64_t buffer) const { return contribution(buffer, ranks_); }

  template <typename Body>
  void for_slices_of_others(const Arrays& arrays, Range piece, Body&& body) const {
    for (int rank = 0; rank < ranks_; ++rank) {
      if (rank != rank_) arrays.for_each_part(slice_of(piece, rank), body);
    }
  }

  void contribute(const Arrays& arrays, Range piece, int64_t buffer) const {
    float* to = contribution(buffer, rank_);
    for_slices_of_others(arrays, piece, [&](const float* x, float*, int64_t position, int64_t count) {
      std::memcpy(to + (position - piece.begin), x, count * sizeof(float));
    });
  }

  void collect(const Arrays& arrays, Range piece, int64_t buffer) const {
    const float* from = sums(buffer);
    for_slices_of_others(arrays, piece, [&](const float*, float* y, int64_t position, int64_t count) {
      std::memcpy(y, from + (position - piece.begin), count * sizeof(float));
    });
  }

  // Adds in the order of the ranks. The sums go to the buffer of sums and to y, or to *slices, which then points behind.
  void sum_slice(const Arrays& arrays, Range piece, int64_t buffer, float** slices) const {
    const Range slice = slice_of(piece, rank_);
    arrays.for_each_part(slice, [&](const float* x, float* y, int64_t position, int64_t count) {
      const int64_t offset = position - piece.begin;
      const auto addend = [&](int rank) { return rank == rank_ ? x : contribution(buffer, rank) + offset; };
      float* sum = slices == nullptr ? sums(buffer) + offset : *slices + (position - slice.begin);
      const float *first = addend(0), *second = addend(1);
      for (int64_t i = 0; i < count; ++i) sum[i] = first[i] + second[i];
      for (int rank = 2; rank < ranks_; ++rank) {
        const float* next = addend(rank);
        for (int64_t i = 0; i < count; ++i) sum[i] += next[i];
      }
      if (slices == nullptr) std::memcpy(y, sum, count * sizeof(float));
    });
    if (slices == nullptr) return;
    float* const end = *slices + slice_size(piece.end - piece.begin, ranks_);
    std::fill(*slices + (slice.end - slice.begin), end, 0.0f);
    *slices = end;
  }

  // Copies the slice of this rank from *slices, which then points behind, to the buffer of sums and to y.
  void share_slice(const Arrays& arrays, Range piece, int64_t buffer, const float** slices) const {
    const Range slice = slice_of(piece, rank_);
    arrays.for_each_part(slice, [&](const float*, float* y, int64_t position, int64_t count) {
      const float* from = *slices + (position - slice.begin);
      std::memcpy(sums(buffer) + (position - piece.begin), from, count * sizeof(float));
      std::memcpy(y, from, count * sizeof(float));
    });
    *slices += slice_size(piece.end - piece.begin, ranks_);
  }

  // Returns when all ranks have called it as often as this one. What they have written before is visible then.
  void meet() {
    const uint32_t over = head_->meetings.load();
    if (head_->arrived.fetch_add(1) + 1 == static_cast<uint32_t>(ranks_)) {
      head_->arrived.store(0);
      head_->meetings.store(over + 1);
      if (head_->sleepers.load() > 0) futex(FUTEX_WAKE, INT_MAX, nullptr);
      return;
    }
    const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
    for (int spins = 1; spins % 64 != 0 || std::chrono::steady_clock::now() < deadline; ++spins) {
      if (head_->meetings.load() != over) return;
      __builtin_ia32_pause();
    }
    head_->sleepers.fetch_add(1);
    while (head_->meetings.load() == over) {
      if (futex(FUTEX_WAIT, over, &kCheckInterval) == -1 && errno == ETIMEDOUT) check_others(over);
    }
    head_->sleepers.fetch_sub(1);
  }

  // Not a private futex: the word is shared between processes.
  long futex(int operation, uint32_t value, const timespec* timeout) const {
    return syscall(SYS_futex, reinterpret_cast<uint32_t*>(&head_->meetings), operation, value, timeout, nullptr, 0);
  }

  // Ends this process if another has ended during the current meeting: the kernel has then released its lock.
  void check_others(uint32_t over) const {
    for (int rank = 0; rank < ranks_; ++rank) {
      struct flock lock = lock_of(rank);
      if (rank == rank_ || fcntl(file_, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK) continue;
      if (head_->meetings.load() != over) return;
      std::fprintf(stderr, "rank %d of this machine has ended while rank %d sums gradients with it\n", rank, rank_);
      std::abort();
    }
  }

  const int file_, ranks_, rank_;
  Head* const head_;
  float* const buffers_;
};

// Never destroyed, because a thread may use it during exit.
Group* joined = nullptr;

}  // namespace
}  // namespace bert

int bert_make_rank_memory(int ranks) {
  // Part of no file system: it has no name and is gone with the last process that uses it, however that ends.
  const int file = syscall(SYS_memfd_create, "bert-rank-sums", MFD_CLOEXEC);
  if (file < 0) return -errno;
  int problem = fchmod(file, S_IRUSR | S_IWUSR) == 0 ? 0 : errno;
  if (problem == 0) problem = posix_fallocate(file, 0, bert::memory_size(ranks));
  if (problem == 0) return file;
  close(file);
  return -problem;
}

int bert_join_ranks(int memory, int ranks, int rank) {
  const int file = fcntl(memory, F_DUPFD_CLOEXEC, 0);
  if (file < 0) return errno;
  struct flock lock = bert::lock_of(rank);
  void* mapped = MAP_FAILED;
  if (fcntl(file, F_OFD_SETLK, &lock) == 0) {
    mapped = mmap(nullptr, bert::memory_size(ranks), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  }
  if (mapped == MAP_FAILED) {
    const int problem = errno;
    close(file);
    return problem;
  }
  bert::joined = new bert::Group(file, mapped, ranks, rank);
  return 0;
}

int64_t bert_slices_size(int64_t count, int ranks) {
  const int64_t whole = count / bert::kPiece;
  return whole * bert::slice_size(bert::kPiece, ranks) + bert::slice_size(count % bert::kPiece, ranks);
}

void bert_scatter_over_ranks(int arrays, const int64_t* count, const float* const* x, float* slices) {
  bert::joined->scatter(bert::Arrays(arrays, count, x, nullptr), slices);
}

void bert_gather_over_ranks(int arrays, const int64_t* count, const float* slices, float* const* y) {
  bert::joined->gather(bert::Arrays(arrays, count, nullptr, y), slices);
}

void bert_sum_over_ranks(int arrays, const int64_t* count, const float* const* x, float* const* y) {
  bert::joined->sum(bert::Arrays(arrays, count, x, y));
}
