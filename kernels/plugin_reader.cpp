// A kernel for OneFlow's record reader whose position can be saved and restored. A thread reads ahead through
// record_reader.h and checks the records. OneFlow's kernel aborts the process at the first record that it cannot read.
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "oneflow/core/record/record.pb.h"

#include "plugin.h"
#include "record_reader.h"

namespace oneflow {
namespace {

// The number of batches read ahead.
constexpr size_t kAhead = 4;
// The number of past batches whose positions are kept.
constexpr int64_t kKeptPositions = 64;

// A field of a record: `length` numbers, which are integers in [0, bound) unless `bound` is negative.
struct ExpectedField {
  std::string name;
  int64_t length;
  int64_t bound;
  bool is_integer;
};

// Settings from Python for the next reader, and the newest reader, which Python queries.
struct Shared {
  std::mutex mutex;
  std::vector<ExpectedField> fields;
  std::string position;
  class ReadAhead* newest = nullptr;
};

// Never destroyed, because a reader may outlive static objects at exit.
Shared& shared() {
  static Shared* const instance = new Shared;
  return *instance;
}

template <typename Values>
bool values_fit(const Values& values, const ExpectedField& field) {
  if (values.size() != field.length) { return false; }
  if (field.bound < 0) { return true; }
  bool all_fit = true;
  for (const auto value : values) { all_fit &= value >= 0 && value < field.bound; }
  return all_fit;
}

bool fits(const Feature& feature, const ExpectedField& field) {
  switch (feature.kind_case()) {
    case Feature::kInt32List: return values_fit(feature.int32_list().value(), field);
    case Feature::kInt64List: return values_fit(feature.int64_list().value(), field);
    case Feature::kFloatList: return !field.is_integer && feature.float_list().value().size() == field.length;
    case Feature::kDoubleList: return !field.is_integer && feature.double_list().value().size() == field.length;
    default: return false;
  }
}

// Returns a record with zeros in all fields, which the operators that follow can process.
OFRecord blank_record(const std::vector<ExpectedField>& fields) {
  OFRecord record;
  for (const ExpectedField& field : fields) {
    Feature& feature = (*record.mutable_feature())[field.name];
    if (field.is_integer) {
      feature.mutable_int32_list()->mutable_value()->Resize(field.length, 0);
    } else {
      feature.mutable_float_list()->mutable_value()->Resize(field.length, 0.0f);
    }
  }
  return record;
}

class ReadAhead final : public user_op::OpKernelState {
 public:
  explicit ReadAhead(user_op::KernelInitContext* context)
      : batch_size_(context->TensorDesc4ArgNameAndIndex("out", 0)->shape().elem_cnt()) {
    const int32_t digits = context->Attr<int32_t>("part_name_suffix_length");
    const std::string prefix =
        context->Attr<std::string>("data_dir") + "/" + context->Attr<std::string>("part_name_prefix");
    std::vector<const char*> paths;
    for (int32_t part = 0; part < context->Attr<int32_t>("data_part_num"); ++part) {
      const std::string number = std::to_string(part);
      paths_.push_back(prefix + std::string(std::max<int32_t>(0, digits - number.size()), '0') + number);
    }
    for (const std::string& path : paths_) { paths.push_back(path.c_str()); }
    BertReaderSettings settings;
    settings.parts = paths.size();
    settings.paths = paths.data();
    settings.seed = context->Attr<int64_t>("seed");
    settings.readers = context->parallel_ctx().parallel_num();
    settings.reader = context->parallel_ctx().parallel_id();
    settings.buffer_size =
        context->Attr<bool>("random_shuffle") ? std::max(1, context->Attr<int32_t>("shuffle_buffer_size")) : 1;
    settings.reorders_parts = context->Attr<bool>("shuffle_after_epoch");
    reader_ = bert_reader_open(&settings);
    {
      std::lock_guard<std::mutex> lock(shared().mutex);
      fields_ = shared().fields;
      if (!shared().position.empty()) {
        bert_reader_restore(reader_, shared().position.data(), shared().position.size());
        shared().position.clear();
      }
      shared().newest = this;
    }
    positions_.emplace_back(0, save({}));
    thread_ = std::thread([this] { read_ahead(); });
  }

  ~ReadAhead() override {
    {
      std::lock_guard<std::mutex> lock(shared().mutex);
      if (shared().newest == this) { shared().newest = nullptr; }
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      is_closed_ = true;
    }
    changed_.notify_all();
    thread_.join();
    bert_reader_close(reader_);
  }

  // Writes the next batch to `records`. After a failure the records are blank, until Python ends the run.
  void give_out(OFRecord* records) {
    std::vector<OFRecord> batch;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return !ready_.empty() || !failure_.empty(); });
      ++given_out_;
      while (positions_.size() > 1 && positions_.front().first < given_out_ - kKeptPositions) {
        used_position_ = std::move(positions_.front().second);
        positions_.pop_front();
      }
      if (!ready_.empty()) {
        batch = std::move(ready_.front());
        ready_.pop_front();
      }
    }
    changed_.notify_all();
    if (batch.empty()) {
      if (fields_.empty()) {
        std::fprintf(stderr, "%s\n", failure_.c_str());
        std::abort();
      }
      batch.assign(batch_size_, blank_record(fields_));
    }
    for (int64_t i = 0; i < batch_size_; ++i) { records[i].Swap(&batch[i]); }
    std::lock_guard<std::mutex> lock(mutex_);
    used_.push_back(std::move(batch));
  }

  // Returns the position after that many batches, or an empty string if it is not known.
  std::string position_after(int64_t batches) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [count, position] : positions_) {
      if (count == batches) {
        std::string sealed = position;
        bert_reader_seal(&sealed[0], sealed.size());
        return sealed;
      }
    }
    return "";
  }

  // Returns the number of batches before the failure, or -1 if there was none.
  int64_t failure(std::string* text, std::string* path, int64_t* offset) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (failure_.empty()) { return -1; }
    *text = failure_;
    *path = failed_part_ < 0 ? "" : paths_[failed_part_];
    *offset = failed_offset_;
    return read_;
  }

 private:
  // Returns the position; reuses the memory of `position`.
  std::string save(std::string position) const {
    const int64_t size = bert_reader_save(reader_, &position[0], position.size());
    if (size != static_cast<int64_t>(position.size())) {
      position.resize(size);
      bert_reader_save(reader_, &position[0], size);
    }
    return position;
  }

  void read_ahead() {
    while (true) {
      std::string used_position;
      std::vector<OFRecord> batch = used_batch(&used_position);
      for (OFRecord& record : batch) {
        if (!read(&record)) { return; }
      }
      std::string position = save(std::move(used_position));
      std::unique_lock<std::mutex> lock(mutex_);
      ready_.push_back(std::move(batch));
      positions_.emplace_back(++read_, std::move(position));
      changed_.notify_all();
      changed_.wait(lock, [this] { return is_closed_ || ready_.size() < kAhead; });
      if (is_closed_) { return; }
    }
  }

  // Returns a batch whose memory can be reused, or a new one; likewise a position.
  std::vector<OFRecord> used_batch(std::string* position) {
    std::lock_guard<std::mutex> lock(mutex_);
    position->swap(used_position_);
    if (used_.empty()) { return std::vector<OFRecord>(batch_size_); }
    std::vector<OFRecord> batch = std::move(used_.back());
    used_.pop_back();
    return batch;
  }

  bool read(OFRecord* record) {
    BertRecord found;
    if (!bert_reader_next(reader_, &found)) {
      int64_t part, offset;
      const char* text = bert_reader_error(reader_, &part, &offset);
      return fail(text, part, offset);
    }
    const auto fail_at = [&](const std::string& text) {
      return fail(paths_[found.part] + ": the record at byte " + std::to_string(found.offset) + text, found.part,
                  found.offset);
    };
    // record_reader.cpp returns no record that is too long for protobuf.
    if (!record->ParseFromArray(found.data, found.size)) {
      return fail_at(" is not an OFRecord");
    }
    for (const ExpectedField& field : fields_) {
      const auto feature = record->feature().find(field.name);
      if (feature == record->feature().end()) { return fail_at(": has no field " + field.name); }
      if (!fits(feature->second, field)) { return fail_at(": field " + field.name + " does not fit this run"); }
    }
    return true;
  }

  bool fail(const std::string& text, int64_t part, int64_t offset) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      failure_ = text;
      failed_part_ = part;
      failed_offset_ = offset;
    }
    changed_.notify_all();
    return false;
  }

  const int64_t batch_size_;
  std::vector<std::string> paths_;
  std::vector<ExpectedField> fields_;
  BertReader* reader_;

  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_closed_ = false;
  int64_t read_ = 0, given_out_ = 0;  // batches
  std::deque<std::vector<OFRecord>> ready_, used_;
  std::deque<std::pair<int64_t, std::string>> positions_;  // after so many batches; not sealed
  std::string used_position_;
  std::string failure_;
  int64_t failed_part_ = -1, failed_offset_ = 0;
  std::thread thread_;
};

class Reader final : public user_op::OpKernel {
 public:
  std::shared_ptr<user_op::OpKernelState> CreateOpKernelState(user_op::KernelInitContext* context) const override {
    return std::make_shared<ReadAhead>(context);
  }

 private:
  using user_op::OpKernel::Compute;
  void Compute(KernelComputeContext* context, user_op::OpKernelState* state,
               const user_op::OpKernelCache*) const override {
    Tensor* out = context->Tensor4ArgNameAndIndex("out", 0);
    CHECK_NOTNULL(dynamic_cast<ReadAhead*>(state))->give_out(out->mut_dptr<OFRecord>());
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

// Eager readers of local tensors keep OneFlow's kernel.
bool is_placed(const KernelRegContext& context) {
  return !context.Attr<std::vector<std::string>>("nd_sbp").empty();
}

REGISTER_USER_KERNEL("OFRecordReader")
    .SetCreateFn<Reader>()
    .SetIsMatchedHob(on_cpu() && when("placed on ranks", is_placed))
    .SetPriority(user_op::kKernelPriorityOptimized);

}  // namespace
}  // namespace oneflow

// ---- for engine/native.py

// Sets the expected fields of all readers created from now on; see ExpectedField.
BERT_KERNEL void bert_expect_fields(int64_t count, const char* const* names, const int64_t* lengths,
                                    const int64_t* bounds, const bool* are_integers) {
  std::lock_guard<std::mutex> lock(oneflow::shared().mutex);
  oneflow::shared().fields.clear();
  for (int64_t i = 0; i < count; ++i) {
    oneflow::shared().fields.push_back({names[i], lengths[i], bounds[i], are_integers[i]});
  }
}

// Sets the start position of the next reader.
BERT_KERNEL void bert_restore_next_reader(const char* position, int64_t size) {
  std::lock_guard<std::mutex> lock(oneflow::shared().mutex);
  oneflow::shared().position.assign(position, size);
}

// Writes the position of the newest reader after that many batches to `into` if `capacity` suffices. Returns its size, 0 if
// the position is not known, or -1 if there is no reader.
BERT_KERNEL int64_t bert_newest_reader_position(int64_t batches, char* into, int64_t capacity) {
  std::lock_guard<std::mutex> lock(oneflow::shared().mutex);
  if (oneflow::shared().newest == nullptr) { return -1; }
  const std::string position = oneflow::shared().newest->position_after(batches);
  if (static_cast<int64_t>(position.size()) <= capacity) { std::memcpy(into, position.data(), position.size()); }
  return position.size();
}

// Returns the number of batches that the newest reader read before it failed, or -1 if it has not failed. After a failure
// `text` is the reason; `path` and `offset` give the record, if a record caused it.
BERT_KERNEL int64_t bert_newest_reader_failure(char* text, char* path, int64_t capacity, int64_t* offset) {
  std::lock_guard<std::mutex> lock(oneflow::shared().mutex);
  if (oneflow::shared().newest == nullptr) { return -1; }
  std::string found_text, found_path;
  const int64_t batches = oneflow::shared().newest->failure(&found_text, &found_path, offset);
  std::snprintf(text, capacity, "%s", found_text.c_str());
  std::snprintf(path, capacity, "%s", found_path.c_str());
  return batches;
}
