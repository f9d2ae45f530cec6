#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "kernels.h"
#include "parallel.h"
#include "random.h"

namespace {

std::atomic<uint64_t> process_seed{0};

}  // namespace

struct BertRandomStream {
  std::string name;
  std::atomic<uint64_t> calls;
};

namespace {

struct Streams {
  std::mutex mutex;
  std::map<std::string, BertRandomStream*> newest;
  std::map<std::string, uint64_t> restored;
};

// Never destroyed, because a graph may outlive static objects at exit.
Streams& streams() {
  static Streams* const instance = new Streams;
  return *instance;
}

}  // namespace

void bert_set_seed(uint64_t seed) { process_seed = seed; }

uint64_t bert_seed() { return process_seed; }

BertRandomStream* bert_open_stream(const char* name) {
  std::lock_guard<std::mutex> lock(streams().mutex);
  auto* stream = new BertRandomStream{name, {0}};
  const auto restored = streams().restored.find(name);
  if (restored != streams().restored.end()) {
    stream->calls = restored->second;
    streams().restored.erase(restored);
  }
  streams().newest[name] = stream;
  return stream;
}

void bert_close_stream(BertRandomStream* stream) {
  std::lock_guard<std::mutex> lock(streams().mutex);
  const auto newest = streams().newest.find(stream->name);
  if (newest != streams().newest.end() && newest->second == stream) streams().newest.erase(newest);
  delete stream;
}

uint64_t bert_next_call(BertRandomStream* stream) { return stream->calls++; }

int64_t bert_list_streams(char* lines, int64_t capacity) {
  std::string list;
  std::lock_guard<std::mutex> lock(streams().mutex);
  for (const auto& [name, stream] : streams().newest) list += std::to_string(stream->calls) + " " + name + "\n";
  const int64_t size = list.size();
  if (size <= capacity) std::memcpy(lines, list.data(), size);
  return size;
}

void bert_restore_stream(const char* name, uint64_t calls) {
  std::lock_guard<std::mutex> lock(streams().mutex);
  streams().restored[name] = calls;
}

uint64_t bert_stream_seed(const char* name) {
  // FNV-1a over the seed's bytes and the name.
  uint64_t hash = 0xcbf29ce484222325u;
  const auto add = [&hash](uint8_t byte) { hash = (hash ^ byte) * 0x100000001b3u; };
  for (int shift = 0; shift < 64; shift += 8) add(static_cast<uint8_t>(process_seed >> shift));
  for (; *name != 0; ++name) add(static_cast<uint8_t>(*name));
  return hash;
}

void bert_random_mask(int64_t count, float rate, uint64_t seed, uint64_t call, uint8_t* keep) {
  constexpr int64_t kBlock = 4 * bert::kLanes;
  const uint64_t threshold = bert::drop_threshold(rate);
  bert::parallel_for((count + kBlock - 1) / kBlock, bert::kElementsPerChunk / kBlock, [=](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      uint8_t made[kBlock];
      bert::keep_block(seed, call, block * kBlock, threshold, made);
      std::memcpy(keep + block * kBlock, made, std::min(kBlock, count - block * kBlock));
    }
  });
}

void bert_apply_mask(int64_t count, float scale, const float* x, const uint8_t* keep, const float* added, float* y) {
  bert::parallel_for(count, bert::kElementsPerChunk, [=](int64_t begin, int64_t end) {
    // A dropped element is 0 even if x is not finite.
    if (added == nullptr) {
      for (int64_t i = begin; i < end; ++i) y[i] = keep[i] ? x[i] * scale : 0.0f;
    } else {
      for (int64_t i = begin; i < end; ++i) y[i] = (keep[i] ? x[i] * scale : 0.0f) + added[i];
    }
  });
}
