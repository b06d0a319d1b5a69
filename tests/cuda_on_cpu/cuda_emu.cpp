// The scheduler of the emulator: fibers, barriers, warp-wide operations.
#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <new>

#include "cuda_emu_internal.h"

#if !defined(__x86_64__)
#error "add a context switch for this processor"
#endif

// Saves the callee-saved registers on the running stack, and continues on the other one.
extern "C" void emu_switch_stack(void** save, void* to);
asm(R"(
  .text
  .hidden emu_switch_stack
  .globl emu_switch_stack
  .type emu_switch_stack,@function
emu_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size emu_switch_stack,.-emu_switch_stack
)");

namespace emu {
namespace {

std::deque<Thread*> ready;
std::function<void()> kernel_body;
std::string error;
void* scheduler_stack_pointer;
std::vector<char*> idle_stacks;
uint64_t random_state = 1;

uint64_t random_bits() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state * 0x2545F4914F6CDD1Dull >> 11;
}

void to_scheduler() {
  emu_switch_stack(&current->stack_pointer, scheduler_stack_pointer);
}

void wake(Thread* thread) {
  thread->waits_in = nullptr;
  ready.push_back(thread);
}

void release_barrier(Block& block) {
  std::vector<Thread*> threads;
  for (Thread& t : block.threads)
    if (!t.done) threads.push_back(&t);
  if (observer) observer->barrier(threads);
  for (Thread* t : threads) {
    t->barrier_count = block.predicate_count;
    if (t != current) wake(t);
  }
  block.arrived = 0;
  block.predicate_count = 0;
}

// Have all live lanes of the mask arrived? Then the others go on.
bool complete(Block& block, unsigned warp_number, Collective& c) {
  Warp& warp = block.warps[warp_number];
  if (c.mask & warp.live & ~c.lanes.arrived) return false;
  std::vector<Thread*> threads;
  for (int l = 0; l < 32; ++l)
    if (c.lanes.arrived >> l & 1) threads.push_back(&block.threads[warp_number * 32 + l]);
  if (observer && !strcmp(c.name, "__syncwarp")) observer->barrier(threads);  // shuffles order no memory
  for (Thread* t : threads)
    if (t != current) wake(t);
  c.readers = static_cast<int>(threads.size());
  for (auto& open : warp.open)
    if (open == &c) {
      open = warp.open.back();
      warp.open.pop_back();
      break;
    }
  return true;
}

void thread_exit() {
  Thread& thread = *current;
  Block& block = *thread.block;
  Warp& warp = block.warps[thread.rank / 32];
  thread.done = true;
  warp.live &= ~(1u << thread.lane());
  --block.live;
  for (size_t i = 0; i < warp.open.size();)
    if (!complete(block, thread.rank / 32, *warp.open[i])) ++i;
  if (block.arrived) error = "a thread returned while others of its block wait at __syncthreads";
}

void fiber_main() {
  kernel_body();
  thread_exit();
  to_scheduler();
}

char* take_stack() {
  if (idle_stacks.empty()) {
    constexpr size_t kGuard = 4096;  // below the stack, so that an overflow faults
    void* memory =
        mmap(nullptr, kStackBytes + kGuard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE)) throw Error("no memory for the fibers' stacks");
    idle_stacks.push_back(static_cast<char*>(memory) + kGuard);
  }
  char* stack = idle_stacks.back();
  idle_stacks.pop_back();
  return stack;
}

std::unique_ptr<Block> start_block(unsigned number, dim3 grid, dim3 block_size) {
  const unsigned count = block_size.x * block_size.y * block_size.z;
  auto block = std::make_unique<Block>();
  block->number = number;
  block->index = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
  block->live = count;
  block->threads.resize(count);
  block->warps.resize((count + 31) / 32);
  for (unsigned rank = 0; rank < count; ++rank) {
    Thread& t = block->threads[rank];
    t.block = block.get();
    t.rank = rank;
    t.number = number * count + rank;
    t.index = {rank % block_size.x, rank / block_size.x % block_size.y, rank / block_size.x / block_size.y};
    block->warps[rank / 32].live |= 1u << rank % 32;
    t.stack = take_stack();
    // Six registers to pop, the entry point, and a slot that keeps the stack aligned.
    void** top = reinterpret_cast<void**>(t.stack + kStackBytes) - 8;
    memset(top, 0, 8 * sizeof *top);
    top[6] = reinterpret_cast<void*>(&fiber_main);
    t.stack_pointer = top;
    ready.push_back(&t);
  }
  return block;
}

void end_block(Block& block) {
  for (Thread& t : block.threads) idle_stacks.push_back(t.stack);
  if (block.shared == nullptr) return;
  if (observer) observer->forget(block.shared, shared_bytes);
  ::operator delete(block.shared, std::align_val_t(128));
}

std::string where_all_wait(const std::vector<std::unique_ptr<Block>>& blocks) {
  std::map<std::string, int> places;
  for (auto& block : blocks)
    for (Thread& t : block->threads)
      if (!t.done)
        ++places["block " + std::to_string(block->number) + " warp " + std::to_string(t.rank / 32) + " at " +
                 (t.waits_in ? t.waits_in : "?") + " line " + std::to_string(t.line)];
  std::string text;
  for (auto& place : places) text += "\n  " + std::to_string(place.second) + " threads of " + place.first;
  return text;
}

Thread* next_thread() {
  if (options.policy == Options::kRandom) std::swap(ready[random_bits() % ready.size()], ready.back());
  Thread* thread;
  if (options.policy == Options::kInOrder) {
    thread = ready.front();
    ready.pop_front();
  } else {
    thread = ready.back();
    ready.pop_back();
  }
  return thread;
}

}  // namespace

void fail(const char* format, ...) {
  char text[1000];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  char where[100];
  snprintf(where, sizeof where, "block (%u,%u,%u) thread (%u,%u,%u): ", blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x,
           threadIdx.y, threadIdx.z);
  error = std::string(where) + text;
  to_scheduler();  // for good: launch() throws
  abort();
}

void maybe_yield(double chance) {
  if (chance <= 0 || static_cast<double>(random_bits()) / 9007199254740992.0 >= chance) return;
  if (options.policy == Options::kReverse) {
    ready.push_front(current);
  } else {
    ready.push_back(current);
  }
  to_scheduler();
}

int lane() {
  return current->lane();
}

int block_barrier(int predicate, int line) {
  Thread& thread = *current;
  Block& block = *thread.block;
  if (block.live != block.threads.size())
    fail("__syncthreads (line %d) after %zu threads of the block returned", line, block.threads.size() - block.live);
  for (Thread& other : block.threads)
    if (other.waits_in && !strcmp(other.waits_in, "__syncthreads") && other.line != line)
      fail("divergent __syncthreads: line %d here, thread %u waits at line %d", line, other.rank, other.line);
  thread.waits_in = "__syncthreads";
  thread.line = line;
  block.predicate_count += predicate != 0;
  if (++block.arrived == block.live) {
    thread.waits_in = nullptr;
    release_barrier(block);
  } else {
    to_scheduler();
  }
  return thread.barrier_count;
}

Lanes collective(const char* name, uint32_t mask, uint64_t value, int line) {
  Thread& thread = *current;
  Warp& warp = thread.block->warps[thread.rank / 32];
  if (!(mask >> thread.lane() & 1)) fail("%s (line %d): the mask %08x lacks the calling lane", name, line, mask);
  Collective* c = nullptr;
  for (Collective* open : warp.open)
    if (open->mask == mask && !strcmp(open->name, name)) c = open;
  if (!c) {
    if (warp.idle.empty()) {
      warp.pool.push_back(std::make_unique<Collective>());
      warp.idle.push_back(warp.pool.back().get());
    }
    c = warp.idle.back();
    warp.idle.pop_back();
    c->name = name;
    c->mask = mask;
    c->lanes.arrived = 0;
    warp.open.push_back(c);
  }
  c->lanes.arrived |= 1u << thread.lane();
  c->lanes.values[thread.lane()] = value;
  if (!complete(*thread.block, thread.rank / 32, *c)) {
    thread.waits_in = name;
    thread.line = line;
    to_scheduler();
  }
  const Lanes result = c->lanes;
  if (--c->readers == 0) warp.idle.push_back(c);
  return result;
}

void fence(bool device_scope) {
  maybe_yield(options.preempt);
  if (observer) observer->fence(*current, device_scope);
}

void before_atomic(const void* address, size_t bytes, void* pc) {
  maybe_yield(options.preempt);
  if (observer) observer->atomic(*current, address, bytes, pc);
}

char* dynamic_shared() {
  Block& block = *current->block;
  if (block.shared == nullptr) {
    block.shared = static_cast<char*>(::operator new(shared_bytes + 1, std::align_val_t(128)));
    memset(block.shared, kPoison, shared_bytes);
  }
  return block.shared;
}

void shared_array(void* array, size_t bytes) {
  Block& block = *current->block;
  char* const begin = static_cast<char*>(array);
  if (begin + bytes > block.shared + shared_bytes)
    fail("a shared array ends %zu bytes past what the launch gave", begin + bytes - block.shared - shared_bytes);
  std::vector<Range> kept;
  for (const Range& r : block.arrays) {
    if (r.begin == begin && r.bytes == bytes) return;  // another thread announced it first
    if (r.begin + r.bytes <= begin || begin + bytes <= r.begin) kept.push_back(r);
  }
  kept.push_back({begin, bytes});
  block.arrays = kept;
  if (observer) observer->uninitialised(array, bytes);
}

void global_buffer(const void* buffer, size_t bytes, const std::string& name, bool initialised, bool writable) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(buffer);
  if (bytes > 0) buffers[begin] = {begin + bytes, name, initialised, writable};
}

void forget_buffers() {
  buffers.clear();
}

void launch(dim3 grid, dim3 block_size, size_t dynamic_bytes, std::function<void()> body) {
  const unsigned num_blocks = grid.x * grid.y * grid.z;
  const unsigned num_threads = block_size.x * block_size.y * block_size.z;
  if (!num_blocks || !num_threads || num_threads > 1024 || dynamic_bytes > 48 << 10 || grid.y > 65535 || grid.z > 65535)
    throw Error("invalid launch configuration");
  gridDim = grid;
  blockDim = block_size;
  shared_bytes = dynamic_bytes;
  kernel_body = std::move(body);
  error.clear();
  ready.clear();
  random_state = (options.seed + 1) * 0x9E3779B97F4A7C15ull;
  std::vector<unsigned> order(num_blocks);
  for (unsigned i = 0; i < num_blocks; ++i) order[i] = options.policy == Options::kReverse ? num_blocks - 1 - i : i;
  if (options.policy == Options::kRandom)
    for (unsigned i = num_blocks; i > 1; --i) std::swap(order[i - 1], order[random_bits() % i]);

  if (observer) observer->grid_begin(num_blocks, num_threads);
  std::vector<std::unique_ptr<Block>> resident;
  unsigned started = 0;
  while (error.empty()) {
    while (resident.size() < options.resident && started < num_blocks)
      resident.push_back(start_block(order[started++], grid, block_size));
    if (ready.empty()) {
      if (!resident.empty()) error = "deadlock:" + where_all_wait(resident);
      break;
    }
    current = next_thread();
    threadIdx = current->index;
    blockIdx = current->block->index;
    emu_switch_stack(&scheduler_stack_pointer, current->stack_pointer);
    Block* const block = current->block;
    current = nullptr;
    if (block->live > 0) continue;
    for (auto& r : resident)
      if (r.get() == block) {
        end_block(*block);
        r = std::move(resident.back());
        resident.pop_back();
        break;
      }
  }
  for (auto& block : resident) end_block(*block);  // after an error
  const std::string findings = observer ? observer->grid_end() : "";
  if (!error.empty() || !findings.empty()) throw Error(error + (error.empty() ? "" : "\n") + findings);
}

}  // namespace emu
