// The card: settings, versions, properties, errors.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>

#include "device.h"
#undef cudaGetDeviceProperties  // the header renames it

namespace fake {

// Compute capability, a card that has it, multiprocessors, GiB; then of a multiprocessor: shared KiB, blocks, threads
// (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability").
static const Card CARDS[] = {
    {60, "Tesla P100-PCIE-16GB", 56, 16, 64, 32, 2048},
    {70, "Tesla V100-SXM2-16GB", 80, 16, 96, 32, 2048},
    {75, "Tesla T4", 40, 16, 64, 16, 1024},
    {80, "NVIDIA A100-SXM4-80GB", 108, 80, 164, 32, 2048},
    {86, "NVIDIA GeForce RTX 3090", 82, 24, 100, 16, 1536},
    {89, "NVIDIA GeForce RTX 4090", 128, 24, 100, 24, 1536},
    {90, "NVIDIA H100 80GB HBM3", 132, 80, 228, 32, 2048},
    {100, "NVIDIA B200", 148, 180, 228, 32, 2048},
};
static const int LOWEST_CAPABILITY = 75;  // that CUDA 13 has a compiler for

static int setting(const char* name, int otherwise) {
  const char* value = getenv(name);
  return value ? atoi(value) : otherwise;
}

const Card& card() {
  static const Card the = [] {
    int capability = setting("FAKE_CC", 90);
    Card card = *std::find_if(std::begin(CARDS), std::end(CARDS) - 1,
                              [&](const Card& row) { return row.capability >= capability; });
    card.capability = capability;
    card.multiprocessors = setting("FAKE_SMS", card.multiprocessors);
    card.memory_gib = setting("FAKE_GB", card.memory_gib);
    if (const char* name = getenv("FAKE_NAME")) card.name = name;
    return card;
  }();
  return the;
}

int devices() {
  static int the = setting("FAKE_COUNT", 1);
  return the;
}
int driver_version() { return setting("FAKE_OLD_DRIVER", RUNTIME_VERSION); }
bool driver_is_old() { return driver_version() < RUNTIME_VERSION; }
bool has_kernels() {
  static bool the = !setting("FAKE_NOKERNEL", card().capability < LOWEST_CAPABILITY);
  return the;
}

static thread_local int device_of_thread = 0;
static thread_local cudaError_t last_error = cudaSuccess;

int current_device() { return device_of_thread; }

cudaError_t fail(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

int attribute(int name, int device) {
  const Card& the = card();
  switch (name) {
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
      return 1024;
    case cudaDevAttrMaxBlockDimZ:
      return 64;
    case cudaDevAttrMaxGridDimX:
      return 2147483647;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      return 65535;
    case cudaDevAttrWarpSize:
      return 32;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      return 65536;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return 48 << 10;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return the.shared_kib << 10;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:  // from 8.0 on the system keeps a KiB for itself
      return (the.capability >= 80 ? the.shared_kib - 1 : std::max(48, the.shared_kib)) << 10;
    case cudaDevAttrMultiProcessorCount:
      return the.multiprocessors;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return the.threads;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      return the.blocks;
    case cudaDevAttrL2CacheSize:
      return 50 << 20;
    case cudaDevAttrClockRate:
      return 1980000;
    case cudaDevAttrMemoryClockRate:
      return 2619000;
    case cudaDevAttrGlobalMemoryBusWidth:
      return 5120;
    case cudaDevAttrPciBusId:
      return device + 1;
    case cudaDevAttrComputeCapabilityMajor:
      return the.capability / 10;
    case cudaDevAttrComputeCapabilityMinor:
      return the.capability % 10;
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrManagedMemory:
    case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrStreamPrioritiesSupported:
      return 1;
    case cudaDevAttrAsyncEngineCount:
      return 3;
    default:
      return 0;
  }
}

static const struct {
  cudaError_t error;
  const char *name, *text;
} ERRORS[] = {
#define ERROR(NAME, TEXT) {NAME, #NAME, TEXT}
    ERROR(cudaSuccess, "no error"),
    ERROR(cudaErrorInvalidValue, "invalid argument"),
    ERROR(cudaErrorMemoryAllocation, "out of memory"),
    ERROR(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version"),
    ERROR(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    ERROR(cudaErrorInvalidDevice, "invalid device ordinal"),
    ERROR(cudaErrorNoKernelImageForDevice, "no kernel image is available for execution on the device"),
    ERROR(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    ERROR(cudaErrorIllegalState, "the operation cannot be performed in the present state"),
    ERROR(cudaErrorHostMemoryAlreadyRegistered, "part or all of the requested memory range is already mapped"),
    ERROR(cudaErrorHostMemoryNotRegistered, "pointer does not correspond to a registered memory region"),
    ERROR(cudaErrorNotSupported, "operation not supported"),
    ERROR(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"),
    ERROR(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture"),
    ERROR(cudaErrorStreamCaptureMerge, "operation would result in a merge of separate capture sequences"),
    ERROR(cudaErrorStreamCaptureUnmatched, "capture was not ended in the same stream as it began"),
    ERROR(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work"),
    ERROR(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream"),
    ERROR(cudaErrorStreamCaptureImplicit,
          "operation would make the legacy stream depend on a capturing blocking stream"),
    ERROR(cudaErrorStreamCaptureWrongThread,
          "attempt to terminate a thread-local capture sequence from another thread"),
    ERROR(cudaErrorCapturedEvent, "operation not permitted on an event last recorded in a capturing stream"),
#undef ERROR
};

}  // namespace fake

using namespace fake;

// ---- errors

API cudaError_t cudaGetLastError() {
  cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
API cudaError_t cudaPeekAtLastError() { return last_error; }
API const char* cudaGetErrorString(cudaError_t error) {
  for (const auto& row : ERRORS)
    if (row.error == error) return row.text;
  return "an error that tests/fakegpu has no text of";
}
API const char* cudaGetErrorName(cudaError_t error) {
  for (const auto& row : ERRORS)
    if (row.error == error) return row.name;
  return "unknown";
}

// A function that only a stub stands for.
API int fake_unsupported(const char* name) {
  count("refused", std::string(name) + ": not in tests/fakegpu/device");
  return fail(cudaErrorNotSupported);
}

// ---- versions and devices

API cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = RUNTIME_VERSION;
  return cudaSuccess;
}
API cudaError_t cudaDriverGetVersion(int* version) {
  *version = driver_version();
  return cudaSuccess;
}
API cudaError_t cudaGetDeviceCount(int* number) {
  *number = driver_is_old() ? 0 : devices();
  if (driver_is_old()) return fail(cudaErrorInsufficientDriver);
  return *number ? cudaSuccess : fail(cudaErrorNoDevice);
}
API cudaError_t cudaGetDevice(int* device) {
  *device = device_of_thread;
  return cudaSuccess;
}
API cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= devices()) return fail(cudaErrorInvalidDevice);
  device_of_thread = device;
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int device) {
  if (device < 0 || device >= devices()) return fail(cudaErrorInvalidDevice);
  *value = attribute(name, device);
  return cudaSuccess;
}
API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* to, int device) {
  if (device < 0 || device >= devices()) return fail(cudaErrorInvalidDevice);
  auto value = [&](cudaDeviceAttr name) { return attribute(name, device); };
  memset(to, 0, sizeof *to);
  snprintf(to->name, sizeof to->name, "%s", card().name);
  to->totalGlobalMem = card().memory();
  to->major = value(cudaDevAttrComputeCapabilityMajor);
  to->minor = value(cudaDevAttrComputeCapabilityMinor);
  to->multiProcessorCount = value(cudaDevAttrMultiProcessorCount);
  to->warpSize = value(cudaDevAttrWarpSize);
  to->maxThreadsPerBlock = value(cudaDevAttrMaxThreadsPerBlock);
  to->maxThreadsDim[0] = value(cudaDevAttrMaxBlockDimX);
  to->maxThreadsDim[1] = value(cudaDevAttrMaxBlockDimY);
  to->maxThreadsDim[2] = value(cudaDevAttrMaxBlockDimZ);
  to->maxGridSize[0] = value(cudaDevAttrMaxGridDimX);
  to->maxGridSize[1] = value(cudaDevAttrMaxGridDimY);
  to->maxGridSize[2] = value(cudaDevAttrMaxGridDimZ);
  to->maxThreadsPerMultiProcessor = value(cudaDevAttrMaxThreadsPerMultiProcessor);
  to->maxBlocksPerMultiProcessor = value(cudaDevAttrMaxBlocksPerMultiprocessor);
  to->sharedMemPerBlock = value(cudaDevAttrMaxSharedMemoryPerBlock);
  to->sharedMemPerBlockOptin = value(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  to->sharedMemPerMultiprocessor = value(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  to->regsPerBlock = value(cudaDevAttrMaxRegistersPerBlock);
  to->regsPerMultiprocessor = value(cudaDevAttrMaxRegistersPerMultiprocessor);
  to->totalConstMem = 64 << 10;
  to->l2CacheSize = value(cudaDevAttrL2CacheSize);
  to->memoryBusWidth = value(cudaDevAttrGlobalMemoryBusWidth);
  to->textureAlignment = 512;
  to->texturePitchAlignment = 32;
  to->asyncEngineCount = value(cudaDevAttrAsyncEngineCount);
  to->pciBusID = value(cudaDevAttrPciBusId);
  to->concurrentKernels = to->unifiedAddressing = to->managedMemory = 1;
  to->cooperativeLaunch = to->streamPrioritiesSupported = 1;
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetPCIBusId(char* text, int size, int device) {
  snprintf(text, size, "0000:%02x:00.0", device + 1);
  return cudaSuccess;
}
API cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 1;
  return cudaSuccess;
}
API cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }
API cudaError_t cudaProfilerStart() { return cudaSuccess; }
API cudaError_t cudaProfilerStop() { return cudaSuccess; }
