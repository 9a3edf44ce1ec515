// Kernels of the runtime API. The host code that nvcc wrote into torch registers each by name and launches it by the
// address of its host function; here a launch is counted by the name, and nothing is computed.
#include <dlfcn.h>
#include <string.h>

#include <map>
#include <vector>

#include "device.h"

namespace fake {

static std::map<const void*, std::string>& names() {
  static auto* the = new std::map<const void*, std::string>;
  return *the;
}

static cudaError_t launch_of(const void* function, cudaStream_t stream) {
  Locked lock;
  auto entry = names().find(function);
  return launch(entry == names().end() ? "unregistered kernel" : entry->second, stream);
}

// What <<<...>>> hands from the caller to the kernel's host function.
struct Configuration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};
static thread_local std::vector<Configuration> configurations;

static int blocks_at_once(int threads) { return card().threads / (threads > 0 ? threads : 128); }

}  // namespace fake

using namespace fake;

// ---- registration

API void** __cudaRegisterFatBinary(void*) {
  static void* handle[1];
  return handle;
}
API void __cudaRegisterFatBinaryEnd(void**) {}
API void __cudaUnregisterFatBinary(void**) {}
API char __cudaInitModule(void**) { return 1; }
API void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
API void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, uint3*, uint3*, dim3*,
                                dim3*, int*) {
  Locked lock;
  names()[function] = name;
}

// ---- launches

API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  configurations.push_back({grid, block, shared, stream});
  return 0;
}
API cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  Configuration last = configurations.back();
  configurations.pop_back();
  *grid = last.grid;
  *block = last.block;
  *shared = last.shared;
  *(cudaStream_t*)stream = last.stream;
  return cudaSuccess;
}
API cudaError_t __cudaGetKernel(cudaKernel_t* to, const void* function) {
  *to = (cudaKernel_t)function;
  return cudaSuccess;
}
API cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3, dim3, void**, size_t, cudaStream_t stream) {
  return launch_of((const void*)kernel, stream);
}
API cudaError_t cudaLaunchKernel(const void* function, dim3, dim3, void**, size_t, cudaStream_t stream) {
  return launch_of(function, stream);
}
API cudaError_t cudaLaunchCooperativeKernel(const void* function, dim3, dim3, void**, size_t, cudaStream_t stream) {
  return launch_of(function, stream);
}
API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* configuration, const void* function, void**) {
  return launch_of(function, configuration->stream);
}

// ---- what is asked about a kernel

API cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* to, const void*) {
  memset(to, 0, sizeof *to);
  if (!has_kernels()) return fail(cudaErrorNoKernelImageForDevice);
  to->maxThreadsPerBlock = 1024;
  to->numRegs = 32;
  to->ptxVersion = to->binaryVersion = card().capability;
  return cudaSuccess;
}
API cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
API cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t, cudaFuncAttribute, int, int) { return cudaSuccess; }
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* to, const void*, int threads, size_t) {
  *to = blocks_at_once(threads);
  return cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* to, const void*, int threads, size_t,
                                                                       unsigned) {
  *to = blocks_at_once(threads);
  return cudaSuccess;
}

// torch asks the runtime for functions of the driver: driver.cpp has them, or nobody.
API cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** to, unsigned, unsigned long long,
                                                 cudaDriverEntryPointQueryResult* result) {
  *to = dlsym(RTLD_DEFAULT, name);
  if (result) *result = *to ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
