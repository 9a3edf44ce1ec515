// cuDNN. Convolutions come as graphs of "backend" descriptors: an operation, in an operation graph, in an engine, in an
// execution plan. Each descriptor takes over the names of those that it is given, so that an executed plan is counted
// as "cudnn convolution forward". Any plan is offered, one a graph, without a workspace. Other calls that compute are
// stubs (stubs.py), which count themselves by `fake_cudnn`.
#include "device.h"  // first: its headers go with each other

#include <cudnn.h>
#include <stdlib.h>

using namespace fake;

static const cudnnStatus_t DONE = CUDNN_STATUS_SUCCESS;
static thread_local cudaStream_t stream_of_thread;

static cudnnStatus_t launched(const std::string& name) {
  cudaError_t error = launch(name, stream_of_thread);
  if (error == cudaSuccess) return DONE;
  return error == cudaErrorNoKernelImageForDevice ? CUDNN_STATUS_NOT_SUPPORTED_ARCH_MISMATCH
                                                  : CUDNN_STATUS_EXECUTION_FAILED;
}
API int fake_cudnn(const char* name) { return launched(name); }

// ---- library

API cudnnStatus_t cudnnCreate(cudnnHandle_t* to) {
  *to = (cudnnHandle_t)calloc(1, 512);
  return DONE;
}
API cudnnStatus_t cudnnSetStream(cudnnHandle_t, cudaStream_t stream) {
  stream_of_thread = stream;
  return DONE;
}
API cudnnStatus_t cudnnGetStream(cudnnHandle_t, cudaStream_t* to) {
  *to = stream_of_thread;
  return DONE;
}
API size_t cudnnGetVersion() { return CUDNN_VERSION; }
API size_t cudnnGetCudartVersion() { return RUNTIME_VERSION; }
API cudnnStatus_t cudnnGetProperty(libraryPropertyType name, int* to) {
  *to = name == MAJOR_VERSION ? CUDNN_MAJOR : name == MINOR_VERSION ? CUDNN_MINOR : CUDNN_PATCHLEVEL;
  return DONE;
}
API const char* cudnnGetErrorString(cudnnStatus_t) { return "an error of tests/fakegpu"; }
API void cudnnGetLastErrorString(char* to, size_t size) {
  if (size) *to = 0;
}

// ---- backend descriptors

namespace {
struct Descriptor {
  std::string names;

  void take(const Descriptor& other) {
    if (other.names.empty() || names.find(other.names) != std::string::npos) return;
    names += (names.empty() ? "" : " + ") + other.names;
  }
};
}  // namespace

API cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t* to) {
  auto* descriptor = new Descriptor;
  switch (type) {
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR:
      descriptor->names = "convolution forward";
      break;
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR:
      descriptor->names = "convolution backward data";
      break;
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR:
      descriptor->names = "convolution backward filter";
      break;
    default:
      break;
  }
  *to = (cudnnBackendDescriptor_t)descriptor;
  return DONE;
}
API cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) {
  delete (Descriptor*)descriptor;
  return DONE;
}
API cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t) { return DONE; }
API cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t,
                                           cudnnBackendAttributeType_t type, int64_t number, const void* values) {
  if (type != CUDNN_TYPE_BACKEND_DESCRIPTOR) return DONE;
  for (int64_t i = 0; i < number; i++)
    if (auto* part = ((Descriptor**)values)[i]) ((Descriptor*)descriptor)->take(*part);
  return DONE;
}
API cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                           cudnnBackendAttributeType_t, int64_t room, int64_t* number, void* to) {
  if (number) *number = 0;
  switch (name) {
    case CUDNN_ATTR_ENGINEHEUR_RESULTS:
    case CUDNN_ATTR_ENGINECFG_ENGINE:
      if (to && room > 0) ((Descriptor**)to)[0]->names = ((Descriptor*)descriptor)->names;
      break;
    case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE:
    case CUDNN_ATTR_ENGINE_GLOBAL_INDEX:
      if (to) *(int64_t*)to = 0;
      break;
    case CUDNN_ATTR_OPERATIONGRAPH_ENGINE_GLOBAL_COUNT:
      if (to) *(int64_t*)to = 1;
      break;
    default:
      return DONE;
  }
  if (number) *number = 1;
  return DONE;
}
API cudnnStatus_t cudnnBackendExecute(cudnnHandle_t, cudnnBackendDescriptor_t plan, cudnnBackendDescriptor_t) {
  return launched("cudnn " + ((Descriptor*)plan)->names);
}

// ---- batch normalisation: no workspace, no reserve

API cudnnStatus_t cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
    cudnnHandle_t, cudnnBatchNormMode_t, cudnnBatchNormOps_t, const cudnnTensorDescriptor_t,
    const cudnnTensorDescriptor_t, const cudnnTensorDescriptor_t, const cudnnTensorDescriptor_t,
    const cudnnActivationDescriptor_t, size_t* to) {
  *to = 0;
  return DONE;
}
API cudnnStatus_t cudnnGetBatchNormalizationBackwardExWorkspaceSize(
    cudnnHandle_t, cudnnBatchNormMode_t, cudnnBatchNormOps_t, const cudnnTensorDescriptor_t,
    const cudnnTensorDescriptor_t, const cudnnTensorDescriptor_t, const cudnnTensorDescriptor_t,
    const cudnnTensorDescriptor_t, const cudnnTensorDescriptor_t, const cudnnActivationDescriptor_t, size_t* to) {
  *to = 0;
  return DONE;
}
API cudnnStatus_t cudnnGetBatchNormalizationTrainingExReserveSpaceSize(cudnnHandle_t, cudnnBatchNormMode_t,
                                                                       cudnnBatchNormOps_t,
                                                                       const cudnnActivationDescriptor_t,
                                                                       const cudnnTensorDescriptor_t, size_t* to) {
  *to = 0;
  return DONE;
}
