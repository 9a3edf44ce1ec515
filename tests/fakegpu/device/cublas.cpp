// cuBLAS and cuBLASLt: a call that computes is one launch, in the stream that its thread set last. Calls that are not
// here are stubs (stubs.py), which count themselves by `fake_cublas`.
#include "device.h"  // first: its headers go with each other

#include <cublasLt.h>
#include <cublas_v2.h>
#include <stdlib.h>
#include <string.h>

using namespace fake;

static const cublasStatus_t DONE = CUBLAS_STATUS_SUCCESS;
static thread_local cudaStream_t stream_of_thread;

static cublasStatus_t launched(const char* name, cudaStream_t stream) {
  cudaError_t error = launch(name, stream);
  if (error == cudaSuccess) return DONE;
  return error == cudaErrorNoKernelImageForDevice ? CUBLAS_STATUS_ARCH_MISMATCH : CUBLAS_STATUS_EXECUTION_FAILED;
}
API int fake_cublas(const char* name) { return launched(name, stream_of_thread); }

template <class T>
static cublasStatus_t made(T* to) {
  *to = (T)calloc(1, 512);  // an opaque structure, larger than any of theirs
  return DONE;
}

// ---- cuBLAS

API cublasStatus_t cublasCreate_v2(cublasHandle_t* to) { return made(to); }
API cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) {
  free(handle);
  return DONE;
}
API cublasStatus_t cublasSetStream_v2(cublasHandle_t, cudaStream_t stream) {
  stream_of_thread = stream;
  return DONE;
}
API cublasStatus_t cublasGetMathMode(cublasHandle_t, cublasMath_t* to) {
  *to = CUBLAS_DEFAULT_MATH;
  return DONE;
}
API cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t, cublasPointerMode_t* to) {
  *to = CUBLAS_POINTER_MODE_HOST;
  return DONE;
}

// ---- cuBLASLt

API size_t cublasLtGetVersion() { return 130100; }
API cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* to, cublasComputeType_t, cudaDataType_t) {
  return made(to);
}
API cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t description) {
  free(description);
  return DONE;
}
API cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* to, cudaDataType, uint64_t, uint64_t, int64_t) {
  return made(to);
}
API cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  free(layout);
  return DONE;
}
API cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* to) { return made(to); }
API cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  free(preference);
  return DONE;
}
API cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
                                                  cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                                  cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, int asked,
                                                  cublasLtMatmulHeuristicResult_t* results, int* number) {
  memset(results, 0, sizeof *results * asked);
  *number = 1;
  return DONE;
}
API cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t, const void*, const void*,
                                  cublasLtMatrixLayout_t, const void*, cublasLtMatrixLayout_t, const void*, const void*,
                                  cublasLtMatrixLayout_t, void*, cublasLtMatrixLayout_t, const cublasLtMatmulAlgo_t*,
                                  void*, size_t, cudaStream_t stream) {
  return launched("cublasLtMatmul", stream);
}
