// Stream capture and graphs. A captured operation is a node and does not happen; a graph's launch counts its nodes.
//
// Rules kept (CUDA C++ Programming Guide, "Stream Capture"): a capture begins on a stream other than the legacy one and
// ends on the same; other streams join it by events and must be waited for before its end; waits and queries of
// capturing streams are forbidden; calls that may be unsafe are forbidden by the modes of the capture and of the
// thread; the legacy stream cannot be used while a blocking stream captures. A forbidden call spoils the capture.
#include "streams.h"

namespace fake {

static std::map<cudaStream_t, std::shared_ptr<Capture>>& captures() {
  static auto* the = new std::map<cudaStream_t, std::shared_ptr<Capture>>;
  return *the;
}
static thread_local cudaStreamCaptureMode mode_of_thread = cudaStreamCaptureModeGlobal;

std::shared_ptr<Capture> capture_of(cudaStream_t stream) {
  auto entry = captures().find(stream);
  return entry == captures().end() ? nullptr : entry->second;
}

cudaError_t join(cudaStream_t stream, const Event& event) {
  captures()[stream] = event.capture;
  Clock& clock = event.capture->streams[stream];
  for (auto [other, nodes] : event.clock) clock[other] = std::max(clock[other], nodes);
  return cudaSuccess;
}

// ---- what a capture forbids

cudaError_t refuse(const std::string& call, cudaError_t error, Capture* capture) {
  count("refused", call + ": " + cudaGetErrorString(error));
  capture->valid = false;
  return fail(error);
}

cudaError_t refuse_if_capturing(const char* call, cudaStream_t stream) {
  Locked lock;
  auto capture = capture_of(stream);
  return capture ? refuse(call, cudaErrorStreamCaptureUnsupported, capture.get()) : cudaSuccess;
}

cudaError_t refuse_if_anything_captures(const char* call) {
  Locked lock;
  for (auto& [_, capture] : captures()) return refuse(call, cudaErrorStreamCaptureUnsupported, capture.get());
  return cudaSuccess;
}

// cudaThreadExchangeStreamCaptureMode: a relaxed thread may; another may not during a capture of its own that is not
// relaxed, nor, where its own mode is global, during a global capture of any thread.
cudaError_t refuse_if_unsafe(const char* call) {
  Locked lock;
  if (mode_of_thread == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  for (auto& [_, capture] : captures()) {
    bool own = capture->thread == std::this_thread::get_id();
    bool all_global = capture->mode == cudaStreamCaptureModeGlobal && mode_of_thread == cudaStreamCaptureModeGlobal;
    if (own ? capture->mode != cudaStreamCaptureModeRelaxed : all_global)
      return refuse(call, cudaErrorStreamCaptureUnsupported, capture.get());
  }
  return cudaSuccess;
}

// Use of the legacy stream, which waits for every blocking stream.
cudaError_t refuse_if_implicit(const std::string& call) {
  for (auto& [stream, capture] : captures())
    if (is_blocking(stream)) return refuse(call, cudaErrorStreamCaptureImplicit, capture.get());
  return cudaSuccess;
}

Enqueued enqueue(const std::string& operation, cudaStream_t stream) {
  Locked lock;
  auto capture = capture_of(stream);
  if (!capture) {
    cudaError_t error = is_legacy(stream) ? refuse_if_implicit(operation) : cudaSuccess;
    return {error, false};
  }
  if (!capture->valid) return {fail(cudaErrorStreamCaptureInvalidated), true};
  capture->graph->nodes++;
  capture->streams[stream][stream]++;
  count("captured", operation);
  return {cudaSuccess, true};
}

cudaError_t launch(const std::string& kernel, cudaStream_t stream) {
  if (!has_kernels()) return fail(cudaErrorNoKernelImageForDevice);
  Enqueued kernel_ = enqueue(kernel, stream);
  if (kernel_.error == cudaSuccess && !kernel_.captured) count("launch", kernel);
  return kernel_.error;
}

}  // namespace fake

using namespace fake;

// ---- begin and end

API cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  Locked lock;
  static unsigned long long captures_so_far = 0;
  if (is_legacy(stream)) return fail(cudaErrorStreamCaptureUnsupported);
  if (capture_of(stream)) return fail(cudaErrorIllegalState);
  auto capture = std::make_shared<Capture>(Capture{++captures_so_far, stream, mode});
  capture->streams[stream];
  captures()[stream] = capture;
  return cudaSuccess;
}
API cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t stream, cudaGraph_t, const cudaGraphNode_t*,
                                              const cudaGraphEdgeData*, size_t, cudaStreamCaptureMode mode) {
  return cudaStreamBeginCapture(stream, mode);
}
API cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* to) {
  Locked lock;
  *to = nullptr;
  auto capture = capture_of(stream);
  if (!capture) return fail(cudaErrorIllegalState);
  if (capture->origin != stream) return refuse("end of capture", cudaErrorStreamCaptureUnmatched, capture.get());
  if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id())
    return refuse("end of capture", cudaErrorStreamCaptureWrongThread, capture.get());
  for (auto& [other, _] : capture->streams) captures().erase(other);
  if (!capture->valid) return fail(cudaErrorStreamCaptureInvalidated);
  Clock& last = capture->streams[stream];
  for (auto& [other, clock] : capture->streams)
    if (last[other] < clock[other]) return fail(cudaErrorStreamCaptureUnjoined);
  count("graph", "captures");
  *to = (cudaGraph_t) new Graph(*capture->graph);
  return cudaSuccess;
}
API cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, mode_of_thread);
  return cudaSuccess;
}

// ---- what torch asks about a capture

static cudaStreamCaptureStatus status_of(const Capture* capture) {
  if (!capture) return cudaStreamCaptureStatusNone;
  return capture->valid ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusInvalidated;
}
API cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* to) {
  Locked lock;
  *to = status_of(capture_of(stream).get());
  return cudaSuccess;
}
API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* id,
                                         cudaGraph_t* graph, const cudaGraphNode_t** dependencies,
                                         const cudaGraphEdgeData** edges, size_t* number) {
  Locked lock;
  auto capture = capture_of(stream);
  *status = status_of(capture.get());
  if (!capture) return cudaSuccess;
  if (id) *id = capture->id;
  if (graph) *graph = (cudaGraph_t)capture->graph.get();
  if (dependencies) *dependencies = nullptr;
  if (edges) *edges = nullptr;
  if (number) *number = 0;
  return cudaSuccess;
}
API cudaError_t cudaStreamUpdateCaptureDependencies(cudaStream_t, cudaGraphNode_t*, const cudaGraphEdgeData*, size_t,
                                                    unsigned) {
  return cudaSuccess;
}

// ---- graphs

API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* to, cudaGraph_t graph, unsigned long long) {
  *to = (cudaGraphExec_t) new Graph(*(Graph*)graph);
  return cudaSuccess;
}
API cudaError_t cudaGraphLaunch(cudaGraphExec_t handle, cudaStream_t stream) {
  Locked lock;
  auto* graph = (Graph*)handle;
  Enqueued launch = enqueue("graph", stream);
  if (launch.error != cudaSuccess || launch.captured) return launch.error;
  count("graph", "launches");
  count("graph", "nodes", graph->nodes);
  for (auto& function : graph->host_functions) function();
  return cudaSuccess;
}
API cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* number) {
  if (nodes)
    for (size_t i = 0; i < *number; i++) nodes[i] = nullptr;
  *number = graph ? ((Graph*)graph)->nodes : 0;
  return cudaSuccess;
}
API cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete (Graph*)graph;
  return cudaSuccess;
}
API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  delete (Graph*)graph;
  return cudaSuccess;
}
