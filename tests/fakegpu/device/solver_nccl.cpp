// cuSOLVER: a call that computes is one launch, by its stub. NCCL: a group of one's own imagination, in which nothing
// is exchanged; processes that are to agree use gloo.
#include "device.h"  // first: its headers go with each other

#include <cusolverDn.h>
#include <stdlib.h>
#include <string.h>

using namespace fake;

// ---- cuSOLVER

static thread_local cudaStream_t stream_of_thread;

API int fake_cusolver(const char* name) {
  return launch(name, stream_of_thread) == cudaSuccess ? CUSOLVER_STATUS_SUCCESS : CUSOLVER_STATUS_EXECUTION_FAILED;
}
API cusolverStatus_t cusolverDnSetStream(cusolverDnHandle_t, cudaStream_t stream) {
  stream_of_thread = stream;
  return CUSOLVER_STATUS_SUCCESS;
}
API cusolverStatus_t cusolverDnDgetrf_bufferSize(cusolverDnHandle_t, int, int, double*, int, int* to) {
  *to = 0;
  return CUSOLVER_STATUS_SUCCESS;
}
API cusolverStatus_t cusolverDnXgetrf_bufferSize(cusolverDnHandle_t, cusolverDnParams_t, int64_t, int64_t, cudaDataType,
                                                 const void*, int64_t, cudaDataType, size_t* device, size_t* host) {
  *device = *host = 0;
  return CUSOLVER_STATUS_SUCCESS;
}

// ---- NCCL, whose results are numbers: 0 is success

static int setting(const char* name, int otherwise) {
  const char* value = getenv(name);
  return value ? atoi(value) : otherwise;
}

// A call that computes has its stream as its last argument, where a stub cannot see it.
API int fake_nccl(const char* name) { return launch(name, nullptr) == cudaSuccess ? 0 : 1; }
API int ncclGetVersion(int* to) {
  *to = 23007;
  return 0;
}
API int ncclGetUniqueId(char* to) {
  memset(to, 7, 128);
  return 0;
}
API int ncclCommGetAsyncError(void*, int* to) {
  *to = 0;
  return 0;
}
API int ncclCommCount(void*, int* to) {
  *to = setting("WORLD_SIZE", 1);
  return 0;
}
API int ncclCommUserRank(void*, int* to) {
  *to = setting("RANK", 0);
  return 0;
}
API const char* ncclGetErrorString(int) { return "an error of tests/fakegpu"; }
API const char* ncclGetLastError(void*) { return "an error of tests/fakegpu"; }
