// The driver API, as far as Triton's launcher, Inductor and torch ask. The device's own Triton kernels are compiled by
// the real ptxas; here they are loaded by name only.
//
// Rule kept: a pointer is a device's, or the driver knows nothing of it, which is how Triton refuses a CPU's tensor.
#include <stdio.h>
#include <string.h>

#include "streams.h"

using namespace fake;

static const CUcontext CONTEXT = (CUcontext)0x77;
static const CUmodule MODULE = (CUmodule)0x78;

static CUresult result(cudaError_t error) { return (CUresult)error; }  // the numbers are the same

// ---- devices and contexts

API CUresult cuInit(unsigned) {
  if (driver_is_old()) return CUDA_SUCCESS;  // an old driver works for itself
  return devices() ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}
API CUresult cuDriverGetVersion(int* to) {
  *to = driver_version();
  return CUDA_SUCCESS;
}
API CUresult cuDeviceGetCount(int* to) {
  *to = devices();
  return CUDA_SUCCESS;
}
API CUresult cuDeviceGet(CUdevice* to, int number) {
  if (number < 0 || number >= devices()) return CUDA_ERROR_INVALID_DEVICE;
  *to = number;
  return CUDA_SUCCESS;
}
API CUresult cuDeviceGetAttribute(int* to, CUdevice_attribute name, CUdevice device) {
  *to = attribute((int)name, device);
  return CUDA_SUCCESS;
}
API CUresult cuDeviceGetName(char* to, int size, CUdevice) {
  snprintf(to, size, "%s", card().name);
  return CUDA_SUCCESS;
}
API CUresult cuDevicePrimaryCtxRetain(CUcontext* to, CUdevice) {
  *to = CONTEXT;
  return CUDA_SUCCESS;
}
API CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
  *flags = 0;
  *active = 1;
  return CUDA_SUCCESS;
}
API CUresult cuCtxGetCurrent(CUcontext* to) {
  *to = CONTEXT;
  return CUDA_SUCCESS;
}
API CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
API CUresult cuCtxGetDevice(CUdevice* to) {
  *to = current_device();
  return CUDA_SUCCESS;
}
API CUresult cuCtxGetLimit(size_t* to, CUlimit) {
  *to = 0;
  return CUDA_SUCCESS;
}
API CUresult cuCtxSetLimit(CUlimit, size_t) { return CUDA_SUCCESS; }
API CUresult cuGetErrorString(CUresult error, const char** to) {
  *to = cudaGetErrorString((cudaError_t)error);
  return CUDA_SUCCESS;
}
API CUresult cuGetErrorName(CUresult error, const char** to) {
  *to = cudaGetErrorName((cudaError_t)error);
  return CUDA_SUCCESS;
}
API CUresult cuPointerGetAttribute(void* to, CUpointer_attribute, CUdeviceptr pointer) {
  if (!is_device((void*)pointer) && !is_pinned((void*)pointer)) return CUDA_ERROR_INVALID_VALUE;
  *(CUdeviceptr*)to = pointer;
  return CUDA_SUCCESS;
}
API CUresult cuCtxSynchronize() { return result(cudaDeviceSynchronize()); }
API CUresult cuStreamSynchronize(CUstream stream) { return result(cudaStreamSynchronize(stream)); }

// ---- modules and functions

API CUresult cuModuleLoad(CUmodule* to, const char*) {
  *to = MODULE;
  return CUDA_SUCCESS;
}
API CUresult cuModuleLoadData(CUmodule* to, const void*) {
  *to = MODULE;
  return CUDA_SUCCESS;
}
API CUresult cuModuleLoadDataEx(CUmodule* to, const void*, unsigned, CUjit_option*, void**) {
  *to = MODULE;
  return CUDA_SUCCESS;
}
API CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
API CUresult cuModuleGetFunction(CUfunction* to, CUmodule, const char* name) {
  *to = (CUfunction)strdup(name);
  return CUDA_SUCCESS;
}
API CUresult cuFuncGetAttribute(int* to, CUfunction_attribute name, CUfunction) {
  *to = name == CU_FUNC_ATTRIBUTE_NUM_REGS ? 32 : name == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}
API CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
API CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }
API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* to, CUfunction, int, size_t) {
  *to = 8;
  return CUDA_SUCCESS;
}
API CUresult cuOccupancyMaxActiveClusters(int* to, CUfunction, const CUlaunchConfig*) {
  *to = 8;
  return CUDA_SUCCESS;
}

// ---- launches

static CUresult launched(CUfunction function, CUstream stream) { return result(launch((const char*)function, stream)); }
API CUresult cuLaunchKernelEx(const CUlaunchConfig* configuration, CUfunction function, void**, void**) {
  return launched(function, configuration->hStream);
}
API CUresult cuLaunchKernel(CUfunction function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                            CUstream stream, void**, void**) {
  return launched(function, stream);
}
API CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                                       unsigned, CUstream stream, void**) {
  return launched(function, stream);
}
API CUresult cuTensorMapEncodeTiled(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                    const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                                    CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  return CUDA_SUCCESS;
}
