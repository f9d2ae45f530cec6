#include "record_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "split_mix.h"

namespace {

constexpr int64_t kReadAhead = 1 << 20;
// Longer than any text record. A longer record is treated as damaged.
constexpr uint64_t kLongestRecord = 1 << 24;
constexpr uint64_t kMagic = 0x3152444145524246u;  // "FBREADR1"

// The uses of random numbers. Each has its own streams.
enum Purpose : uint64_t { kPartOrder = 1, kDraws = 2 };

struct Position {
  int64_t part, offset;
};

struct Buffered {
  Position position;
  std::string bytes;
};

// The fixed part of a saved state. The sizes of the parts, the positions of the buffered records and a checksum follow.
struct StateHead {
  uint64_t magic, seed;
  int64_t parts, readers, reader, buffer_size, reorders_parts;
  int64_t epoch, index, offset, buffered;
  uint64_t draws;
};

uint64_t checksum_of(const void* data, size_t size) {
  // FNV-1a.
  uint64_t hash = 0xcbf29ce484222325u;
  for (size_t i = 0; i < size; ++i) hash = (hash ^ static_cast<const uint8_t*>(data)[i]) * 0x100000001b3u;
  return hash;
}

// A part that is open for reading, with read-ahead.
class PartFile {
 public:
  PartFile() = default;
  PartFile(const PartFile&) = delete;
  PartFile& operator=(const PartFile&) = delete;
  ~PartFile() { close_file(); }

  // Returns 0 or errno.
  int open(const std::string& path) {
    close_file();
    descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    return descriptor_ < 0 ? errno : 0;
  }

  // Reads `size` bytes at `offset`. *data points to them until the next call. On failure returns false; errno is 0 at the
  // end of the file.
  bool read(int64_t offset, int64_t size, const char** data) {
    if (offset < begin_ || offset + size > begin_ + filled_) {
      const int64_t wanted = std::max(size, kReadAhead);
      if (wanted > capacity_) {
        // A string would fill the memory with zeros first.
        bytes_.reset(new char[wanted]);
        capacity_ = wanted;
      }
      begin_ = offset;
      filled_ = 0;
      while (filled_ < wanted) {
        const ssize_t got = pread(descriptor_, bytes_.get() + filled_, wanted - filled_, offset + filled_);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) {
          filled_ = 0;
          return false;
        }
        if (got == 0) break;
        filled_ += got;
      }
      if (filled_ < size) {
        errno = 0;
        return false;
      }
    }
    *data = bytes_.get() + (offset - begin_);
    return true;
  }

  bool is_open() const { return descriptor_ >= 0; }

  void close_file() {
    if (descriptor_ >= 0) ::close(descriptor_);
    descriptor_ = -1;
    begin_ = filled_ = 0;
  }

  int descriptor() const { return descriptor_; }

 private:
  int descriptor_ = -1;
  int64_t begin_ = 0, filled_ = 0;  // what of the file is in bytes_
  int64_t capacity_ = 0;
  std::unique_ptr<char[]> bytes_;
};

}  // namespace

struct BertReader {
 public:
  explicit BertReader(const BertReaderSettings& settings)
      : paths_(settings.paths, settings.paths + settings.parts),
        seed_(settings.seed),
        readers_(settings.readers),
        reader_(settings.reader),
        buffer_size_(settings.buffer_size),
        reorders_parts_(settings.reorders_parts) {
    if (readers_ > parts()) fail("there are more readers than parts");
    for (const std::string& path : paths_) {
      struct stat found = {};
      if (stat(path.c_str(), &found) != 0) fail(path + ": cannot be read: " + std::strerror(errno));
      sizes_.push_back(found.st_size);
    }
    draws_ = bert::stream_start(seed_, kDraws, reader_);
    begin_epoch(0);
  }

  bool next(BertRecord* record) {
    if (!error_.empty()) return false;
    while (!fill() || buffer_.empty()) {
      if (!error_.empty()) return false;
      if (records_read_ == 0) {
        fail("the parts hold no records");
        return false;
      }
      begin_epoch(epoch_ + 1);
    }
    const size_t drawn = buffer_size_ == 1 ? 0 : bert::below(&draws_, buffer_.size());
    std::swap(buffer_[drawn], buffer_.back());
    given_ = std::move(buffer_.back());
    buffer_.pop_back();
    *record = {given_.bytes.data(), static_cast<int64_t>(given_.bytes.size()), given_.position.part,
               given_.position.offset};
    return true;
  }

  const char* error(int64_t* part, int64_t* offset) const {
    *part = at_fault_.part;
    *offset = at_fault_.offset;
    return error_.c_str();
  }

  int64_t save(char* state, int64_t capacity) const {
    const StateHead head = {kMagic, seed_,  parts(), readers_, reader_, buffer_size_, reorders_parts_,
                            epoch_, index_, offset_, static_cast<int64_t>(buffer_.size()), draws_};
    const int64_t size = sizeof(head) + sizes_.size() * sizeof(int64_t) + buffer_.size() * sizeof(Position) +
                         sizeof(uint64_t);
    if (size > capacity) return size;
    const auto append = [&state](const void* data, size_t bytes) {
      std::memcpy(state, data, bytes);
      state += bytes;
    };
    append(&head, sizeof(head));
    append(sizes_.data(), sizes_.size() * sizeof(int64_t));
    for (const Buffered& buffered : buffer_) append(&buffered.position, sizeof(Position));
    const uint64_t no_checksum = 0;
    append(&no_checksum, sizeof(no_checksum));
    return size;
  }

  void restore(const char* state, int64_t size) {
    if (!error_.empty()) return;
    StateHead head;
    uint64_t checksum;
    const int64_t rest = size - static_cast<int64_t>(sizeof(head) + sizeof(checksum));
    if (rest < 0) return fail("the saved position of the reader is no such position");
    std::memcpy(&head, state, sizeof(head));
    std::memcpy(&checksum, state + size - sizeof(checksum), sizeof(checksum));
    if (head.magic != kMagic || checksum != checksum_of(state, size - sizeof(checksum)) || rest % 8 != 0 ||
        head.parts < 0 || head.parts > rest / 8 || head.buffered < 0 || head.buffered > rest / 16 ||
        rest != head.parts * 8 + head.buffered * 16) {
      return fail("the saved position of the reader is damaged");
    }
    if (head.parts != parts() || head.readers != readers_ || head.reader != reader_ ||
        head.buffer_size != buffer_size_ || head.reorders_parts != reorders_parts_) {
      return fail("the saved position of the reader is that of another number of parts, ranks or way to shuffle");
    }
    const char* at = state + sizeof(head);
    for (size_t part = 0; part < sizes_.size(); ++part, at += sizeof(int64_t)) {
      int64_t saved_size;
      std::memcpy(&saved_size, at, sizeof(saved_size));
      if (saved_size != sizes_[part]) {
        return fail(paths_[part] + ": has " + std::to_string(sizes_[part]) + " bytes, but had " +
                    std::to_string(saved_size) + " when the position of the reader was saved");
      }
    }
    seed_ = head.seed;
    begin_epoch(head.epoch);
    if (head.index < 0 || head.index > static_cast<int64_t>(order_.size()) || head.offset < 0 ||
        head.buffered > buffer_size_) {
      return fail("the saved position of the reader is damaged");
    }
    index_ = head.index;
    offset_ = head.offset;
    draws_ = head.draws;
    records_read_ = 1;
    PartFile file;
    int64_t open_part = -1;
    for (int64_t i = 0; i < head.buffered; ++i, at += sizeof(Position)) {
      Buffered buffered;
      std::memcpy(&buffered.position, at, sizeof(Position));
      const Position& position = buffered.position;
      if (position.part < 0 || position.part >= parts() || position.offset < 0) {
        return fail("the saved position of the reader is damaged");
      }
      if (position.part != open_part && !open_file(&file, position.part)) return;
      open_part = position.part;
      if (!read_record(&file, position, &buffered.bytes)) return;
      buffer_.push_back(std::move(buffered));
    }
  }

 private:
  int64_t parts() const { return paths_.size(); }

  void fail(const std::string& text, Position at_fault = {-1, 0}) {
    error_ = text;
    at_fault_ = at_fault;
  }

  // Sets the parts that this reader reads in an epoch, in order.
  void begin_epoch(int64_t epoch) {
    epoch_ = epoch;
    index_ = offset_ = records_read_ = 0;
    file_.close_file();
    std::vector<int64_t> order(parts());
    for (int64_t part = 0; part < parts(); ++part) order[part] = part;
    if (reorders_parts_ && epoch > 0) {
      uint64_t state = bert::stream_start(seed_, kPartOrder, epoch);
      for (int64_t left = parts(); left > 1; --left) std::swap(order[left - 1], order[bert::below(&state, left)]);
    }
    order_.assign(order.begin() + parts() * reader_ / readers_, order.begin() + parts() * (reader_ + 1) / readers_);
  }

  // Fills the buffer until it is full or all parts of the epoch are read.
  bool fill() {
    while (static_cast<int64_t>(buffer_.size()) < buffer_size_ && index_ < static_cast<int64_t>(order_.size())) {
      const int64_t part = order_[index_];
      if (offset_ >= sizes_[part]) {
        ++index_;
        offset_ = 0;
        file_.close_file();
        continue;
      }
      // Reuses the memory of the record returned before.
      Buffered buffered{{part, offset_}, std::move(given_.bytes)};
      if (!file_.is_open() && !open_file(&file_, part)) return false;
      if (!read_record(&file_, buffered.position, &buffered.bytes)) return false;
      offset_ += sizeof(int64_t) + buffered.bytes.size();
      ++records_read_;
      buffer_.push_back(std::move(buffered));
    }
    return true;
  }

  bool open_file(PartFile* file, int64_t part) {
    const int code = file->open(paths_[part]);
    struct stat found;
    if (code != 0 || fstat(file->descriptor(), &found) != 0) {
      fail(paths_[part] + ": cannot be read any more: " + std::strerror(code != 0 ? code : errno));
      return false;
    }
    if (found.st_size != sizes_[part]) {
      fail(paths_[part] + ": had " + std::to_string(sizes_[part]) + " bytes when the run began, and now has " +
           std::to_string(found.st_size) + "; parts must not change under a run");
      return false;
    }
    posix_fadvise(file->descriptor(), 0, 0, POSIX_FADV_SEQUENTIAL);
    return true;
  }

  bool read_record(PartFile* file, const Position& position, std::string* bytes) {
    const int64_t left = sizes_[position.part] - position.offset;
    const char* data;
    uint64_t size = 0;
    if (left < static_cast<int64_t>(sizeof(size))) return fail_at(position, " runs past the end of the file");
    if (!file->read(position.offset, sizeof(size), &data)) return fail_to_read(position);
    std::memcpy(&size, data, sizeof(size));
    if (size == 0) return fail_at(position, " is empty");
    if (size > static_cast<uint64_t>(left) - sizeof(size)) return fail_at(position, " runs past the end of the file");
    if (size > kLongestRecord) {
      return fail_at(position, " is " + std::to_string(size) + " bytes long, more than " + std::to_string(kLongestRecord));
    }
    if (!file->read(position.offset + sizeof(size), size, &data)) return fail_to_read(position);
    bytes->assign(data, size);
    return true;
  }

  bool fail_to_read(const Position& position) {
    const int code = errno;
    return fail_at(position, code == 0 ? " has been cut off since the run began"
                                       : std::string(" cannot be read: ") + std::strerror(code));
  }

  bool fail_at(const Position& position, const std::string& text) {
    fail(paths_[position.part] + ": the record at byte " + std::to_string(position.offset) + text, position);
    return false;
  }

  const std::vector<std::string> paths_;
  std::vector<int64_t> sizes_;
  uint64_t seed_;
  const int64_t readers_, reader_, buffer_size_;
  const bool reorders_parts_;

  int64_t epoch_ = 0;
  std::vector<int64_t> order_;  // the parts that are read in this epoch
  int64_t index_ = 0;           // in order_
  int64_t offset_ = 0;          // of the next record in that part
  int64_t records_read_ = 0;    // in this epoch
  uint64_t draws_ = 0;          // the generator that draws from the buffer
  std::vector<Buffered> buffer_;
  Buffered given_;
  PartFile file_;
  std::string error_;
  Position at_fault_ = {-1, 0};
};

BertReader* bert_reader_open(const BertReaderSettings* settings) { return new BertReader(*settings); }

void bert_reader_close(BertReader* reader) { delete reader; }

bool bert_reader_next(BertReader* reader, BertRecord* record) { return reader->next(record); }

const char* bert_reader_error(const BertReader* reader, int64_t* part, int64_t* offset) {
  return reader->error(part, offset);
}

int64_t bert_reader_save(const BertReader* reader, void* state, int64_t capacity) {
  return reader->save(static_cast<char*>(state), capacity);
}

void bert_reader_seal(void* state, int64_t size) {
  char* end = static_cast<char*>(state) + size - sizeof(uint64_t);
  const uint64_t checksum = checksum_of(state, size - sizeof(checksum));
  std::memcpy(end, &checksum, sizeof(checksum));
}

void bert_reader_restore(BertReader* reader, const void* state, int64_t size) {
  reader->restore(static_cast<const char*>(state), size);
}
