// Lets the arrays of a graph share memory on the CPU. OneFlow does so only on GPUs. On a CPU each array has its own memory,
// three times the peak need of a step of BERT.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <map>
#include <stdexcept>
#include <tuple>

#include "oneflow/core/graph/stream_id.h"
#include "oneflow/core/job/plan.pb.h"

#include "plugin.h"

namespace oneflow {

// Declared in OneFlow's task_node.h, which the wheel lacks.
RegstDescProto* FindOrCreateProducedCtrlRegstDesc(TaskProto* task, const std::string& name);
RegstDescIdSet* FindOrCreateConsumedCtrlRegstDescIdSet(TaskProto* task, const std::string& name);

namespace {

// Smaller arrays do not share memory.
constexpr int64_t kSmallestBytes = int64_t{1} << 16;
// The alignment of offsets.
constexpr int64_t kAlignment = 512;
// Set as the variable name of arrays that share memory.
constexpr const char* kSharedName = "shared";
// OneFlow numbers its memory blocks from 0.
constexpr int64_t kFirstBlock = int64_t{1} << 40;

struct Array {
  RegstDescProto* array;
  int64_t size;
  size_t first, last;  // the index of the operator that writes it, and of the last that reads it
  int64_t offset = 0;
};

bool is_operator_on_cpu(const TaskProto& task) {
  return (task.task_type() == TaskType::kNormalForward || task.task_type() == TaskType::kAcc) &&
         task.exec_sequence().exec_node_size() == 1 &&
         DecodeStreamIdFromInt64(task.thrd_id()).device_type() == DeviceType::kCPU;
}

// How many times each array of a plan, by id, is written per step: several times with gradient accumulation.
std::map<int64_t, int64_t> writes_in_step(const Plan& plan) {
  std::map<int64_t, int64_t> writes;
  for (const TaskProto& task : plan.task()) {
    for (const auto& produced : task.produced_regst_desc()) {
      const auto& type = produced.second.regst_desc_type();
      if (!type.has_data_regst_desc()) { continue; }
      int64_t& count = writes[produced.second.regst_desc_id()] = 1;
      for (const int64_t size : type.data_regst_desc().time_shape().dim()) { count *= size; }
    }
  }
  return writes;
}

// How many times an operator runs per step. An accumulator runs as often as its input is written.
int64_t runs_in_step(const TaskProto& task, const std::map<int64_t, int64_t>& writes) {
  int64_t runs = 1;
  const auto consider = [&](int64_t array) {
    const auto found = writes.find(array);
    if (found != writes.end()) { runs = std::max(runs, found->second); }
  };
  if (task.task_type() == TaskType::kAcc) {
    for (const auto& consumed : task.consumed_regst_desc_id()) {
      for (const int64_t array : consumed.second.regst_desc_id()) { consider(array); }
    }
  }
  for (const auto& produced : task.produced_regst_desc()) { consider(produced.second.regst_desc_id()); }
  return runs;
}

// Returns the size in bytes of an array that may share memory, 0 for other arrays.
int64_t shareable_bytes(const RegstDescProto& array) {
  if (!array.enable_reuse_mem() || array.register_num() != 1 || array.mem_block_id() != -1) { return 0; }
  if (array.mem_case().device_type() != DeviceType::kCPU || array.mem_case().has_pinned_device_type()) { return 0; }
  if (!array.regst_desc_type().has_data_regst_desc()) { return 0; }
  const auto& data = array.regst_desc_type().data_regst_desc();
  if (data.lbi2blob_desc_size() != 1) { return 0; }
  const BlobDescProto& description = data.lbi2blob_desc(0).blob_desc();
  if (description.data_type() != DataType::kFloat) { return 0; }
  int64_t bytes = sizeof(float);
  for (const int64_t size : description.shape().dim()) { bytes *= size; }
  return bytes < kSmallestBytes ? 0 : (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// Makes `later` wait for `earlier`, with a control message. There is only one such message, so `earlier` does not run for
// the next step before `later` has run for this one. Between the first and the last operator of a chain, this separates
// the steps.
void connect(TaskProto* earlier, TaskProto* later, const char* name) {
  for (const auto& produced : earlier->produced_regst_desc()) {
    for (const int64_t consumer : produced.second.consumer_task_id()) {
      if (consumer == later->task_id()) { return; }
    }
  }
  RegstDescProto* signal = FindOrCreateProducedCtrlRegstDesc(earlier, name);
  signal->add_consumer_task_id(later->task_id());
  FindOrCreateConsumedCtrlRegstDescIdSet(later, "in_ctrl")->add_regst_desc_id(signal->regst_desc_id());
}

// Assigns offsets, largest array first: the lowest offset that no array with an overlapping lifetime uses.
void place(std::vector<Array>* arrays) {
  std::stable_sort(arrays->begin(), arrays->end(), [](const Array& a, const Array& b) { return a.size > b.size; });
  std::vector<const Array*> placed;  // by offset
  for (Array& array : *arrays) {
    for (const Array* other : placed) {
      if (other->last < array.first || array.last < other->first) { continue; }
      if (array.offset + array.size <= other->offset) { break; }
      array.offset = std::max(array.offset, other->offset + other->size);
    }
    placed.insert(std::upper_bound(placed.begin(), placed.end(), &array,
                                   [](const Array* a, const Array* b) { return a->offset < b->offset; }),
                  &array);
  }
}

// Handles the operators of one thread that run equally often, in OneFlow's order.
void share_memory(std::vector<TaskProto*> tasks) {
  std::sort(tasks.begin(), tasks.end(), [](const TaskProto* a, const TaskProto* b) {
    return a->task_set_info().order_in_graph() < b->task_set_info().order_in_graph();
  });
  std::map<int64_t, size_t> place_of;
  for (size_t i = 0; i < tasks.size(); ++i) { place_of[tasks[i]->task_id()] = i; }
  std::vector<Array> arrays;
  std::vector<bool> is_ordered(tasks.size());
  for (size_t i = 0; i < tasks.size(); ++i) {
    // The sum outlives the operators that run as often as the accumulator.
    if (tasks[i]->task_type() == TaskType::kAcc) { continue; }
    for (auto& produced : *tasks[i]->mutable_produced_regst_desc()) {
      RegstDescProto& array = produced.second;
      const int64_t size = shareable_bytes(array);
      if (size == 0) { continue; }
      size_t last = i;
      bool is_read_here = true;
      for (const int64_t consumer : array.consumer_task_id()) {
        const auto found = place_of.find(consumer);
        if (found == place_of.end()) {
          is_read_here = false;
          break;
        }
        last = std::max(last, found->second);
      }
      if (!is_read_here) { continue; }
      arrays.push_back({&array, size, i, last});
      is_ordered[i] = true;
      for (const int64_t consumer : array.consumer_task_id()) { is_ordered[place_of[consumer]] = true; }
    }
  }
  if (arrays.size() < 2) { return; }
  TaskProto *first = nullptr, *previous = nullptr;
  for (size_t i = 0; i < tasks.size(); ++i) {
    if (!is_ordered[i]) { continue; }
    if (previous != nullptr) { connect(previous, tasks[i], "out_ctrl_memory_order"); }
    if (first == nullptr) { first = tasks[i]; }
    previous = tasks[i];
  }
  connect(first, previous, "out_ctrl_memory_guard");
  place(&arrays);
  static std::atomic<int64_t> next_block{kFirstBlock};
  const int64_t block = next_block++;
  for (const Array& array : arrays) {
    array.array->set_mem_block_id(block);
    array.array->set_mem_block_offset(array.offset);
    // OneFlow stores the shape of other arrays in front of their data, where sharing arrays would overwrite it.
    array.array->set_variable_op_name(kSharedName);
  }
}

}  // namespace
}  // namespace oneflow

// Called when a plan is complete except for memory. Handles the operators of each thread that run equally often in a step
// separately, and makes them run sequentially in OneFlow's order.
BERT_KERNEL void bert_share_memory(oneflow::Plan* plan) {
  const std::map<int64_t, int64_t> writes = oneflow::writes_in_step(*plan);
  std::map<std::tuple<int64_t, int64_t, int64_t>, std::vector<oneflow::TaskProto*>> tasks;
  for (oneflow::TaskProto& task : *plan->mutable_task()) {
    if (!oneflow::is_operator_on_cpu(task)) { continue; }
    tasks[{task.machine_id(), task.thrd_id(), oneflow::runs_in_step(task, writes)}].push_back(&task);
  }
  for (auto& thread : tasks) { oneflow::share_memory(thread.second); }
}

namespace oneflow {
namespace {

// The bytes that a plan needs on one type of device of a rank: in total, and for variables.
struct Need {
  int64_t all = 0, variables = 0;
};

// Returns the need of the rank that needs most.
Need largest_need(const Plan& plan, DeviceType type) {
  std::map<int64_t, Need> needs;
  for (const auto& chunk : plan.block_chunk_list().chunk()) {
    if (chunk.mem_case().device_type() == type) { needs[chunk.machine_id()].all += chunk.mem_size(); }
  }
  for (const auto& block : plan.block_chunk_list().mem_block()) {
    if (block.mem_case().device_type() != type || block.has_chunk_id()) { continue; }
    Need& need = needs[block.machine_id()];
    need.all += block.mem_size();
    if (block.has_variable_op_name() && block.variable_op_name() != kSharedName) {
      need.variables += block.mem_size();
    }
  }
  Need most;
  for (const auto& need : needs) {
    if (need.second.all > most.all) { most = need.second; }
  }
  return most;
}

// engine/device.py parses this line.
void tell(const std::string& graph, const Need& need, const char* of_what) {
  if (need.all == 0) { return; }
  std::fprintf(stderr, "%s needs %lld bytes of %s, %lld of them for variables\n", graph.c_str(),
               static_cast<long long>(need.all), of_what, static_cast<long long>(need.variables));
}

int64_t memory_limit = 0;

}  // namespace
}  // namespace oneflow

// Prints to stderr the memory that a graph needs on the GPU that needs most.
BERT_KERNEL void bert_tell_memory(const oneflow::Plan* plan, const std::string* graph) {
  oneflow::tell(*graph, oneflow::largest_need(*plan, oneflow::DeviceType::kCUDA), "a GPU");
}

// Sets the bytes of the machine's memory that a rank may use.
BERT_KERNEL void bert_limit_memory(int64_t bytes) { oneflow::memory_limit = bytes; }

// Prints to stderr the memory that a graph needs in the rank that needs most, if it is more than half of the limit. Throws
// an exception, which ends the compilation, if it is more than the limit: the system would kill the process.
BERT_KERNEL void bert_check_memory(const oneflow::Plan* plan, const std::string* graph) {
  const oneflow::Need need = oneflow::largest_need(*plan, oneflow::DeviceType::kCPU);
  if (oneflow::memory_limit == 0 || need.all <= oneflow::memory_limit / 2) { return; }
  oneflow::tell(*graph, need, "memory");
  if (need.all > oneflow::memory_limit) { throw std::runtime_error("out of memory"); }
}
