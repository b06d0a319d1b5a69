// The emulator's state, shared between its scheduler and the race checker.
#pragma once

#include <map>
#include <memory>

#include "cuda_emu.h"

namespace emu {

struct Block;

struct Thread {
  Block* block;
  uint3 index;
  unsigned rank;    // in the block
  unsigned number;  // in the grid
  char* stack = nullptr;
  void* stack_pointer = nullptr;
  const char* waits_in = nullptr;
  int line = 0;
  int barrier_count = 0;
  bool done = false;

  int lane() const { return static_cast<int>(rank % 32); }
};

// One warp-wide operation that some lanes have reached.
struct Collective {
  const char* name;
  uint32_t mask;
  int readers;
  Lanes lanes;
};

struct Warp {
  uint32_t live = 0;
  std::vector<std::unique_ptr<Collective>> pool;
  std::vector<Collective*> open, idle;
};

struct Range {
  char* begin;
  size_t bytes;
};

struct Block {
  uint3 index;
  unsigned number;
  unsigned live = 0, arrived = 0;
  int predicate_count = 0;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  char* shared = nullptr;  // dynamic shared memory
  std::vector<Range> arrays;
};

constexpr size_t kStackBytes = 64 << 10;
constexpr unsigned char kPoison = 0xCB;

struct Observer {
  virtual ~Observer() = default;
  virtual void grid_begin(unsigned blocks, unsigned threads_per_block) = 0;
  virtual void barrier(const std::vector<Thread*>& threads) = 0;
  virtual void fence(Thread& thread, bool device_scope) = 0;
  virtual void atomic(Thread& thread, const void* address, size_t bytes, void* pc) = 0;
  virtual void forget(const void* memory, size_t bytes) = 0;         // it is about to be someone else's
  virtual void uninitialised(const void* memory, size_t bytes) = 0;  // its values are, its history stays
  virtual std::string grid_end() = 0;                                // the findings, if any
};

inline Observer* observer = nullptr;
inline Thread* current = nullptr;
inline size_t shared_bytes = 0;

struct Buffer {
  uintptr_t end;
  std::string name;
  bool initialised, writable;
};
inline std::map<uintptr_t, Buffer> buffers;

void maybe_yield(double chance);

}  // namespace emu
