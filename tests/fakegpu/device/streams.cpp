// Streams, events and waits. What is put into a stream is done when the call returns, so that a wait never takes time;
// it is counted, and refused where a capture forbids it.
#include "streams.h"

namespace fake {

bool is_legacy(cudaStream_t stream) { return stream == nullptr || stream == cudaStreamLegacy; }

// The legacy stream and a blocking one wait for each other. All of torch's own streams are non-blocking.
bool is_blocking(cudaStream_t stream) {
  if (is_legacy(stream) || stream == cudaStreamPerThread) return false;
  return !(((Stream*)stream)->flags & cudaStreamNonBlocking);
}

}  // namespace fake

using namespace fake;

// ---- streams

API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* to, unsigned flags, int priority) {
  *to = (cudaStream_t) new Stream{flags, priority};
  return cudaSuccess;
}
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* to, unsigned flags) {
  return cudaStreamCreateWithPriority(to, flags, 0);
}
API cudaError_t cudaStreamCreate(cudaStream_t* to) { return cudaStreamCreateWithPriority(to, cudaStreamDefault, 0); }
API cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }  // events may still name it
API cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* to) {
  *to = is_legacy(stream) || stream == cudaStreamPerThread ? 0 : ((Stream*)stream)->priority;
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

// ---- waits of the host

API cudaError_t cudaDeviceSynchronize() {
  count("wait", "cudaDeviceSynchronize");
  return refuse_if_anything_captures("cudaDeviceSynchronize");
}
API cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  count("wait", "cudaStreamSynchronize");
  return refuse_if_capturing("cudaStreamSynchronize", stream);
}
API cudaError_t cudaStreamQuery(cudaStream_t stream) { return refuse_if_capturing("cudaStreamQuery", stream); }
API cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  Locked lock;
  count("wait", "cudaEventSynchronize");
  auto& capture = ((Event*)event)->capture;
  return capture ? refuse("cudaEventSynchronize", cudaErrorCapturedEvent, capture.get()) : cudaSuccess;
}

// ---- events

API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* to, unsigned flags) {
  *to = (cudaEvent_t) new Event{flags};
  return cudaSuccess;
}
API cudaError_t cudaEventCreate(cudaEvent_t* to) { return cudaEventCreateWithFlags(to, cudaEventDefault); }
API cudaError_t cudaEventDestroy(cudaEvent_t event) {
  Locked lock;
  delete (Event*)event;
  return cudaSuccess;
}

// In a capturing stream an event is a place in the capture, unless it is recorded "external": then it is a node.
API cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t stream, unsigned flags) {
  Locked lock;
  auto* event = (Event*)handle;
  auto capture = capture_of(stream);
  if (capture && !capture->valid) return fail(cudaErrorStreamCaptureInvalidated);
  if (capture && flags & cudaEventRecordExternal) return enqueue("event record", stream).error;
  event->recorded = true;
  event->time = std::chrono::steady_clock::now();
  event->capture = capture;
  event->clock = capture ? capture->streams[stream] : Clock{};
  return cudaSuccess;
}
API cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return cudaEventRecordWithFlags(event, stream, cudaEventRecordDefault);
}

// What lies in a capture never happened, and cannot be asked for.
API cudaError_t cudaEventQuery(cudaEvent_t event) {
  Locked lock;
  auto& capture = ((Event*)event)->capture;
  if (capture) return refuse("cudaEventQuery of a captured event", cudaErrorCapturedEvent, capture.get());
  return refuse_if_unsafe("cudaEventQuery");
}
API cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  Locked lock;
  auto *first = (Event*)from, *second = (Event*)to;
  for (Event* event : {first, second}) {
    if (event->capture) return fail(cudaErrorCapturedEvent);
    if (!event->recorded || event->flags & cudaEventDisableTiming) return fail(cudaErrorInvalidResourceHandle);
  }
  *milliseconds = std::chrono::duration<float, std::milli>(second->time - first->time).count();
  return cudaSuccess;
}

// A stream that waits for an event of a capture joins it; a capture cannot wait for what is outside, and two captures
// cannot become one. An event that was never recorded is waited for by nobody.
API cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t handle, unsigned flags) {
  Locked lock;
  auto* event = (Event*)handle;
  auto capture = capture_of(stream);
  if (capture && !capture->valid) return fail(cudaErrorStreamCaptureInvalidated);
  if (!event->recorded) return cudaSuccess;
  if (!event->capture) {
    if (!capture) return cudaSuccess;
    if (flags & cudaEventWaitExternal) return enqueue("event wait", stream).error;
    return refuse("cudaStreamWaitEvent of an event outside", cudaErrorStreamCaptureIsolation, capture.get());
  }
  if (capture && capture != event->capture)
    return refuse("cudaStreamWaitEvent of another capture", cudaErrorStreamCaptureMerge, capture.get());
  bool is_over = capture_of(event->capture->origin) != event->capture;
  if (is_over) return fail(cudaErrorCapturedEvent);
  return join(stream, *event);
}

// ---- functions of the host

API cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  Locked lock;
  Enqueued call = enqueue("host function", stream);
  if (call.error != cudaSuccess) return call.error;
  if (call.captured)
    capture_of(stream)->graph->host_functions.push_back([=] { function(data); });
  else
    function(data);
  return cudaSuccess;
}
API cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t function, void* data, unsigned) {
  if (cudaError_t error = refuse_if_capturing("cudaStreamAddCallback", stream)) return error;
  function(stream, cudaSuccess, data);
  return cudaSuccess;
}
