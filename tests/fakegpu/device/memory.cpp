// Memory and copies. A device's memory is the host's, mapped when it is written: 80 GB cost nothing. Copies and memsets
// outside of captures happen at once, on the calling thread.
//
// Rules kept: a card's memory is limited; memory belongs to the device that it was allocated on; a copy to pageable
// memory waits for the stream; allocation during a capture is for threads that relaxed their capture mode.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <map>

#include "streams.h"

namespace fake {

static const size_t CONTEXT = 512ul << 20;  // of each card, that a process cannot have

struct Block {
  size_t size;
  int device;
};

// The block that holds an address.
class Blocks : public std::map<uintptr_t, Block> {
 public:
  const Block* holding(const void* pointer) const {
    auto at = (uintptr_t)pointer;
    auto next = upper_bound(at);
    if (next == begin()) return nullptr;
    auto& [start, block] = *--next;
    return at < start + block.size ? &block : nullptr;
  }
};

static Blocks& device_blocks() {
  static auto* the = new Blocks;
  return *the;
}
static Blocks& pinned_blocks() {  // by cudaHostAlloc
  static auto* the = new Blocks;
  return *the;
}
static Blocks& registered_blocks() {  // by cudaHostRegister: pinned, and the caller's to free
  static auto* the = new Blocks;
  return *the;
}
static size_t used[64];  // bytes of each device

bool is_device(const void* pointer) {
  Locked lock;
  return device_blocks().holding(pointer);
}
bool is_pinned(const void* pointer) {
  Locked lock;
  return pinned_blocks().holding(pointer) || registered_blocks().holding(pointer);
}

static std::string kind_of(const void* pointer) {
  return is_device(pointer) ? "device" : is_pinned(pointer) ? "pinned" : "pageable";
}

// `rows` of `width` bytes each.
static cudaError_t copy(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t rows,
                        cudaStream_t stream) {
  Locked lock;
  std::string kind = kind_of(from) + ">" + kind_of(to);
  Enqueued copy = enqueue("memcpy " + kind, stream);
  // CUDA records a copy of pageable memory, and its replays read whatever is there then. torch refuses it itself.
  if (copy.error != cudaSuccess || copy.captured) return copy.error;
  count("copy", kind);
  count("bytes", kind, width * rows);
  if (kind == "device>pageable") count("wait", "copy " + kind);
  for (size_t row = 0; row < rows; row++) memmove((char*)to + row * to_pitch, (char*)from + row * from_pitch, width);
  return cudaSuccess;
}

static cudaError_t set(void* to, int value, size_t size, cudaStream_t stream) {
  Locked lock;
  Enqueued memset_ = enqueue("memset", stream);
  if (memset_.error != cudaSuccess || memset_.captured) return memset_.error;
  count("launch", "memset");
  memset(to, value, size);
  return cudaSuccess;
}

}  // namespace fake

using namespace fake;

// ---- a card's memory

API cudaError_t cudaMalloc(void** to, size_t size) {
  Locked lock;
  *to = nullptr;
  if (cudaError_t error = refuse_if_unsafe("cudaMalloc")) return error;
  if (size == 0) return cudaSuccess;
  int device = current_device();
  if (used[device] + size + CONTEXT > card().memory()) return fail(cudaErrorMemoryAllocation);
  void* block = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (block == MAP_FAILED) return fail(cudaErrorMemoryAllocation);
  device_blocks()[(uintptr_t)block] = {size, device};
  used[device] += size;
  count("call", "cudaMalloc");
  *to = block;
  return cudaSuccess;
}
API cudaError_t cudaFree(void* pointer) {
  Locked lock;
  if (!pointer) return cudaSuccess;
  if (cudaError_t error = refuse_if_unsafe("cudaFree")) return error;
  auto block = device_blocks().find((uintptr_t)pointer);
  if (block == device_blocks().end()) return fail(cudaErrorInvalidValue);
  count("wait", "cudaFree");  // it returns when all work of the device is done
  used[block->second.device] -= block->second.size;
  munmap(pointer, block->second.size);
  device_blocks().erase(block);
  return cudaSuccess;
}
API cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
  Locked lock;
  *total = card().memory();
  *available = *total - CONTEXT - used[current_device()];
  return cudaSuccess;
}

// ---- pinned memory

API cudaError_t cudaHostAlloc(void** to, size_t size, unsigned) {
  Locked lock;
  if (cudaError_t error = refuse_if_unsafe("cudaHostAlloc")) return error;
  if (posix_memalign(to, 4096, size ? size : 1)) return fail(cudaErrorMemoryAllocation);
  pinned_blocks()[(uintptr_t)*to] = {size, current_device()};
  count("call", "cudaHostAlloc");
  return cudaSuccess;
}
API cudaError_t cudaFreeHost(void* pointer) {
  Locked lock;
  if (!pointer) return cudaSuccess;
  if (cudaError_t error = refuse_if_unsafe("cudaFreeHost")) return error;
  if (!pinned_blocks().erase((uintptr_t)pointer)) return fail(cudaErrorInvalidValue);
  free(pointer);
  return cudaSuccess;
}
API cudaError_t cudaHostRegister(void* pointer, size_t size, unsigned) {
  Locked lock;
  if (is_pinned(pointer)) return fail(cudaErrorHostMemoryAlreadyRegistered);
  registered_blocks()[(uintptr_t)pointer] = {size, current_device()};
  count("call", "cudaHostRegister");
  return cudaSuccess;
}
API cudaError_t cudaHostUnregister(void* pointer) {
  Locked lock;
  return registered_blocks().erase((uintptr_t)pointer) ? cudaSuccess : fail(cudaErrorHostMemoryNotRegistered);
}
API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* to, const void* pointer) {
  Locked lock;
  memset(to, 0, sizeof *to);
  to->type = cudaMemoryTypeUnregistered;
  if (const Block* block = device_blocks().holding(pointer)) {
    to->type = cudaMemoryTypeDevice;
    to->device = block->device;
    to->devicePointer = (void*)pointer;
  } else if (is_pinned(pointer)) {
    to->type = cudaMemoryTypeHost;
    to->devicePointer = to->hostPointer = (void*)pointer;
  }
  return cudaSuccess;
}

// ---- copies

API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind, cudaStream_t stream) {
  return copy(to, 0, from, 0, size, 1, stream);
}
API cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t size, cudaStream_t stream) {
  return copy(to, 0, from, 0, size, 1, stream);
}
API cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind) {
  count("wait", "cudaMemcpy");
  return copy(to, 0, from, 0, size, 1, cudaStreamLegacy);
}
API cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                  size_t rows, cudaMemcpyKind, cudaStream_t stream) {
  return copy(to, to_pitch, from, from_pitch, width, rows, stream);
}
API cudaError_t cudaMemset(void* to, int value, size_t size) { return set(to, value, size, cudaStreamLegacy); }
API cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t stream) {
  return set(to, value, size, stream);
}

// Constants of kernels: nobody reads them.
API cudaError_t cudaMemcpyToSymbol(const void*, const void*, size_t, size_t, cudaMemcpyKind) { return cudaSuccess; }
API cudaError_t cudaGetSymbolAddress(void** to, const void*) {
  static char constants[1 << 16];
  *to = constants;
  return cudaSuccess;
}
