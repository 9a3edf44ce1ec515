// What the parts of the device share: its settings, its lock, its counts, and the one door into a stream.
//
//   card.cpp       settings, properties, errors          streams.cpp   streams, events, waits
//   memory.cpp     memory, copies                        capture.cpp   stream capture, graphs
//   kernels.cpp    kernels of the runtime API            driver.cpp    the driver API, as far as Triton asks
//   counting.cpp   what was asked of the device          cublas.cpp cudnn.cpp cusolver.cpp nccl.cpp
#pragma once
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <mutex>
#include <string>

#define API extern "C" __attribute__((visibility("default")))

namespace fake {

// ---- card.cpp

// What a process is told about each of its devices. Environment: FAKE_CC FAKE_NAME FAKE_SMS FAKE_GB.
struct Card {
  int capability;  // 90 is compute capability 9.0
  const char* name;
  int multiprocessors;
  size_t memory_gib;
  int shared_kib;  // shared memory of a multiprocessor; then its largest numbers of blocks and of threads
  int blocks;
  int threads;

  size_t memory() const { return memory_gib << 30; }
};
const Card& card();
int devices();         // FAKE_COUNT
int current_device();  // of this thread
int driver_version();  // FAKE_OLD_DRIVER: older than what the runtime needs
bool driver_is_old();
bool has_kernels();  // FAKE_NOKERNEL: torch was not built for this card
const int RUNTIME_VERSION = 13000;

// An error is returned by the call that makes it, and kept for this thread until cudaGetLastError.
cudaError_t fail(cudaError_t error);
int attribute(int name, int device);  // the runtime and the driver number them alike

// ---- counting.cpp

// One lock for all state: calls come from the threads of autograd, of data loaders and of Python.
std::recursive_mutex& mutex();
struct Locked {
  std::lock_guard<std::recursive_mutex> guard{mutex()};
};

// Kinds: launch, captured, copy, bytes, wait, refused, graph, call. tests/fakegpu/counting.py reads them.
void count(const char* kind, const std::string& name, long number = 1);

// ---- memory.cpp

bool is_device(const void* pointer);
bool is_pinned(const void* pointer);

// ---- capture.cpp

// Everything that is put into a stream comes through here. `captured`: it became a node of a graph and must not happen
// now. An error: CUDA refuses it.
struct Enqueued {
  cudaError_t error;
  bool captured;
};
Enqueued enqueue(const std::string& operation, cudaStream_t stream);

// A kernel in a stream: enqueued and counted. Without kernels for this card nothing is launched.
cudaError_t launch(const std::string& kernel, cudaStream_t stream);

}  // namespace fake
