// Streams, events and captures, for streams.cpp and capture.cpp.
#pragma once
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "device.h"

namespace fake {

struct Stream {
  unsigned flags;
  int priority;
};

struct Graph {
  long nodes = 0;
  std::vector<std::function<void()>> host_functions;
};

// How many of each stream's nodes come before a point in a capture.
using Clock = std::map<cudaStream_t, long>;

struct Capture {
  unsigned long long id;
  cudaStream_t origin;
  cudaStreamCaptureMode mode;
  std::thread::id thread = std::this_thread::get_id();
  std::shared_ptr<Graph> graph = std::make_shared<Graph>();
  bool valid = true;                           // false after a call that CUDA forbids during a capture
  std::map<cudaStream_t, Clock> streams = {};  // the origin, and those that joined it by an event
};

struct Event {
  unsigned flags;
  bool recorded = false;
  std::chrono::steady_clock::time_point time = {};
  std::shared_ptr<Capture> capture = nullptr;  // that it was last recorded in
  Clock clock = {};
};

bool is_legacy(cudaStream_t stream);
bool is_blocking(cudaStream_t stream);

std::shared_ptr<Capture> capture_of(cudaStream_t stream);
bool anything_captures();

// A call that a capture forbids: counted as refused; the capture that forbids it cannot be ended well any more.
cudaError_t refuse(const std::string& call, cudaError_t error, Capture* capture);
cudaError_t refuse_if_capturing(const char* call, cudaStream_t stream);
cudaError_t refuse_if_anything_captures(const char* call);
cudaError_t refuse_if_unsafe(const char* call);
cudaError_t refuse_if_implicit(const std::string& call);

// A stream becomes part of the capture that an event was recorded in.
cudaError_t join(cudaStream_t stream, const Event& event);

}  // namespace fake
