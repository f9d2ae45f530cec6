// Keeps the graph of operators that OneFlow builds from a job. Compiling needs 25 of them one after the other, for passes
// that rewrite the job or only look at it. Each infers the shapes of all operators, and many are of the same job.
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include "oneflow/core/graph/op_graph.h"

#include "plugin.h"

namespace oneflow {
namespace {

// Exchanges private members. An explicit instantiation may name them.
template <auto... members>
struct Contents {
  friend void swap_contents(OpGraph& a, OpGraph& b) { (std::swap(a.*members, b.*members), ...); }
};
void swap_contents(OpGraph& a, OpGraph& b);
template struct Contents<&Graph<OpNode, OpEdge>::nodes_, &Graph<OpNode, OpEdge>::edges_, &OpGraph::op_name2op_node_,
                         &OpGraph::op_names_, &OpGraph::producer_op_name2ctrl_consumer_op_names_>;

// The graphs of a thread.
struct Graphs {
  OpGraph kept;  // that of kept_job, if it is not empty
  std::string kept_job;
  const OpGraph* newest = nullptr;  // that of newest_job; it belongs to OneFlow
  std::string newest_job;
};

// Freed by bert_forget_graphs alone: at the end of a thread OneFlow may be gone.
thread_local Graphs* graphs = nullptr;

// Writes what a graph is built from. Equal jobs have equal texts.
void write_job(const Job& job, std::string* text) {
  text->clear();
  google::protobuf::io::StringOutputStream stream(text);
  google::protobuf::io::CodedOutputStream output(&stream);
  output.SetSerializationDeterministic(true);
  const google::protobuf::MessageLite* parts[] = {&job.net(), &job.placement(), &job.job_conf(),
                                                  &job.job_parallel_view_conf()};
  for (const auto* part : parts) {
    output.WriteVarint64(part->ByteSizeLong());
    part->SerializeWithCachedSizes(&output);
  }
}

}  // namespace

extern "C" {

// OpGraph::Init, which is `own`: builds the empty `graph` of a job, or moves the kept graph into it if its job is equal.
void* bert_build_graph(void* (*own)(void*, void*, const void*), void* result, OpGraph* graph, const Job* job) {
  if (graphs == nullptr) { graphs = new Graphs; }
  graphs->newest = nullptr;
  write_job(*job, &graphs->newest_job);
  if (graphs->kept.node_num() > 0 && graphs->newest_job == graphs->kept_job) {
    swap_contents(*graph, graphs->kept);
    new (result) Maybe<void>(Maybe<void>::Ok());
  } else {
    own(result, graph, job);
    if (!static_cast<Maybe<void>*>(result)->IsOk()) { return result; }
  }
  graphs->newest = graph;
  return result;
}

// Keeps the graph that OneFlow is about to destroy, if it is the newest, and lets it destroy the one kept before instead.
void bert_keep_graph(OpGraph* graph) {
  if (graphs == nullptr || graphs->newest != graph) { return; }
  graphs->newest = nullptr;
  swap_contents(*graph, graphs->kept);
  graphs->newest_job.swap(graphs->kept_job);
}

// Keeps the graph after OpGraph::DumpNdSbpSignature has written into its `job` how each operator is divided among the ranks:
// a graph of that job would infer the same. Those who call this use the graph no more.
void bert_keep_dumped_graph(OpGraph* graph, const Job* job) {
  if (graphs == nullptr || graphs->newest != graph) { return; }
  write_job(*job, &graphs->newest_job);
  bert_keep_graph(graph);
}

// Destroys the kept graph.
void bert_forget_graphs() {
  delete graphs;
  graphs = nullptr;
}

}  // extern "C"
}  // namespace oneflow
