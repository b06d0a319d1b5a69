// Finds races, missing fences, uninitialised reads and accesses out of bounds in kernels run by the emulator.
//
// The kernel's file is compiled with -fsanitize=thread, this one without, and nothing is linked with it: the
// compiler's __tsan_* calls land here. Every byte remembers its last write and the reads since; two accesses
// race when neither happens before the other. "Happens before" is CUDA's own: __syncthreads and __syncwarp order
// memory; shuffles do not; an atomic orders nothing by itself; fence, atomic ... atomic, fence on one address
// synchronise, at the scope of the narrower fence. One run of one schedule therefore covers many schedules.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <set>
#include <unordered_map>

#include "cuda_emu_internal.h"

extern "C" __attribute__((visibility("hidden"))) char __ehdr_start[], _end[];  // this module's image

namespace emu {
namespace {

// clock[t]: up to which of its own steps thread t is known. Shared, never changed once made.
using Clock = std::vector<uint32_t>;
using ClockRef = std::shared_ptr<const Clock>;

struct ThreadState {
  uint32_t step = 1;
  ClockRef known;                     // of the other threads
  ClockRef released, released_block;  // snapshots at the last fence of each scope
  ClockRef seen, seen_block;          // what atomics have read, in force from the next fence on
};

// What atomics on one address have passed on.
struct AtomicState {
  ClockRef device, block;
  unsigned block_number = ~0u;
};

struct Access {
  uint32_t thread = ~0u, step = 0, pc = 0;
  bool atomic = false;

  bool exists() const { return thread != ~0u; }
};

struct Cell {  // one byte
  Access write, read;
  uint32_t more_reads = 0;  // index into read_lists once several threads read concurrently
  bool initialised = false;
};

class RaceChecker final : public Observer {
 public:
  RaceChecker() { observer = this; }

  void grid_begin(unsigned blocks, unsigned threads_per_block) override {
    num_threads_ = blocks * threads_per_block;
    threads_per_block_ = threads_per_block;
    threads_.assign(num_threads_, {});
    atomics_.clear();
    pages_.clear();
    page_number_ = ~uintptr_t{0};
    read_lists_.assign(1, {});
    idle_lists_.clear();
    report_.clear();
    distinct_.clear();
    findings_ = 0;
  }

  void barrier(const std::vector<Thread*>& threads) override {
    auto joined = std::make_shared<Clock>(num_threads_, 0u);
    std::set<const Clock*> merged;
    for (const Thread* t : threads) {
      const ClockRef& known = threads_[t->number].known;
      if (known && merged.insert(known.get()).second)
        for (unsigned i = 0; i < num_threads_; ++i) (*joined)[i] = std::max((*joined)[i], (*known)[i]);
    }
    for (const Thread* t : threads) (*joined)[t->number] = threads_[t->number].step;
    for (const Thread* t : threads) {
      threads_[t->number].known = joined;
      ++threads_[t->number].step;
    }
  }

  void fence(Thread& thread, bool device_scope) override {
    ThreadState& s = threads_[thread.number];
    s.known = merge(s.known, s.seen_block);
    if (device_scope) s.known = merge(s.known, s.seen);
    auto snapshot = s.known ? std::make_shared<Clock>(*s.known) : std::make_shared<Clock>(num_threads_, 0u);
    (*snapshot)[thread.number] = s.step++;
    s.released_block = snapshot;
    if (device_scope) s.released = snapshot;
  }

  void atomic(Thread& thread, const void* address, size_t bytes, void* pc) override {
    access(reinterpret_cast<uintptr_t>(address), bytes, true, true, pc);
    ThreadState& s = threads_[thread.number];
    AtomicState& a = atomics_[reinterpret_cast<uintptr_t>(address)];
    if (a.block_number != thread.block->number) {
      a.block = nullptr;
      a.block_number = thread.block->number;
    }
    s.seen = merge(s.seen, a.device);
    s.seen_block = merge(s.seen_block, a.block);
    a.device = merge(a.device, s.released);
    a.block = merge(a.block, s.released_block);
  }

  void forget(const void* memory, size_t bytes) override {
    for (size_t i = 0; i < bytes; ++i) {
      Cell& c = cell(reinterpret_cast<uintptr_t>(memory) + i);
      drop_reads(c);
      c = Cell{};
    }
  }

  void uninitialised(const void* memory, size_t bytes) override {
    for (size_t i = 0; i < bytes; ++i) cell(reinterpret_cast<uintptr_t>(memory) + i).initialised = false;
  }

  std::string grid_end() override {
    return findings_ == 0 ? "" : std::to_string(findings_) + " findings, distinct ones:\n" + report_;
  }

  void access(uintptr_t address, size_t bytes, bool write, bool atomic, void* return_address) {
    const Thread& thread = *current;
    const uint32_t pc = static_cast<uint32_t>(static_cast<char*>(return_address) - __ehdr_start);
    if (address - reinterpret_cast<uintptr_t>(thread.stack) < kStackBytes) return;
    if (address - reinterpret_cast<uintptr_t>(__ehdr_start) < static_cast<size_t>(_end - __ehdr_start)) return;
    bool must_be_written = true;
    if (!in_shared_array(*thread.block, address, bytes)) {
      const Buffer* buffer = find_buffer(address, bytes);
      if (!buffer)
        fail("out-of-bounds %s of %zu bytes near %s\n   at %s", write ? "write" : "read", bytes, name(address).c_str(),
             source_line(pc).c_str());
      if (!buffer->writable) {
        if (write) fail("write to read-only %s\n   at %s", name(address).c_str(), source_line(pc).c_str());
        return;  // nothing can race there
      }
      must_be_written = !buffer->initialised;
    }
    const Access now{thread.number, threads_[thread.number].step, pc, atomic};
    for (uintptr_t a = address; a < address + bytes; ++a) {
      Cell& c = cell(a);
      if ((!write || atomic) && must_be_written && !c.initialised) {
        finding("uninitialised", pc, 0, [&] {
          return "UNINITIALISED read at " + name(a) + " by " + who(now.thread) + " " + source_line(pc) + "\n";
        });
        c.initialised = true;
      }
      check(c.write, now, a, write ? "write" : "read", c.write.atomic ? "earlier atomic" : "earlier write");
      if (write) {
        check(c.read, now, a, "write", "earlier read");
        for (const Access& read : read_lists_[c.more_reads]) check(read, now, a, "write", "earlier read");
        drop_reads(c);
        c.read = Access{};
        c.write = now;
        c.initialised = true;
      } else {
        note_read(c, now);
      }
    }
  }

 private:
  // Does `earlier` happen before what `thread` does now?
  bool happens_before(const Access& earlier, uint32_t thread) const {
    const ClockRef& known = threads_[thread].known;
    return earlier.thread == thread || (known && (*known)[earlier.thread] >= earlier.step);
  }

  void check(const Access& earlier, const Access& now, uintptr_t address, const char* what, const char* other) {
    if (!earlier.exists() || (earlier.atomic && now.atomic) || happens_before(earlier, now.thread)) return;
    finding("race", now.pc, earlier.pc, [&] {
      return "RACE at " + name(address) + ":\n   " + what + " by " + who(now.thread) + " " + source_line(now.pc) +
             "\n   " + other + " by " + who(earlier.thread) + " " + source_line(earlier.pc) + "\n";
    });
  }

  void note_read(Cell& c, const Access& now) {
    if (!c.read.exists() || (c.more_reads == 0 && happens_before(c.read, now.thread))) {
      c.read = now;
      return;
    }
    if (c.more_reads == 0) {
      if (idle_lists_.empty()) {
        c.more_reads = static_cast<uint32_t>(read_lists_.size());
        read_lists_.emplace_back();
      } else {
        c.more_reads = idle_lists_.back();
        idle_lists_.pop_back();
      }
    }
    std::vector<Access>& reads = read_lists_[c.more_reads];
    if (reads.empty() || reads.back().thread != now.thread || reads.back().step != now.step) reads.push_back(now);
  }

  void drop_reads(Cell& c) {
    if (c.more_reads == 0) return;
    read_lists_[c.more_reads].clear();
    idle_lists_.push_back(c.more_reads);
    c.more_reads = 0;
  }

  static bool in_shared_array(const Block& block, uintptr_t address, size_t bytes) {
    for (const Range& r : block.arrays) {
      const uintptr_t begin = reinterpret_cast<uintptr_t>(r.begin);
      if (address >= begin && address + bytes <= begin + r.bytes) return true;
    }
    return false;
  }

  static const Buffer* find_buffer(uintptr_t address, size_t bytes) {
    auto it = buffers.upper_bound(address);
    if (it == buffers.begin()) return nullptr;
    --it;
    return it->second.end >= address + bytes ? &it->second : nullptr;
  }

  Cell& cell(uintptr_t address) {
    if (address >> 12 != page_number_) {
      auto& page = pages_[address >> 12];
      if (!page) page.reset(new Cell[4096]);
      page_ = page.get();
      page_number_ = address >> 12;
    }
    return page_[address & 4095];
  }

  ClockRef merge(const ClockRef& a, const ClockRef& b) const {
    if (!a || a == b) return b;
    if (!b) return a;
    auto merged = std::make_shared<Clock>(*a);
    for (unsigned i = 0; i < num_threads_; ++i) (*merged)[i] = std::max((*merged)[i], (*b)[i]);
    return merged;
  }

  template <class Text>
  void finding(const char* kind, uint32_t pc1, uint32_t pc2, Text text) {
    ++findings_;
    char key[64];
    snprintf(key, sizeof key, "%s %x %x", kind, std::min(pc1, pc2), std::max(pc1, pc2));
    if (distinct_.size() < 10 && distinct_.insert(key).second) report_ += text();
  }

  std::string who(uint32_t thread) const {
    return "block " + std::to_string(thread / threads_per_block_) + " thread " +
           std::to_string(thread % threads_per_block_);
  }

  static std::string name(uintptr_t address) {
    char text[160];
    const Block& block = *current->block;
    const uintptr_t shared = reinterpret_cast<uintptr_t>(block.shared);
    if (block.shared != nullptr && address - shared < shared_bytes) {
      snprintf(text, sizeof text, "shared memory of block %u+%#zx", block.number, size_t{address - shared});
      return text;
    }
    auto it = buffers.upper_bound(address);
    if (it == buffers.begin()) return "unknown memory";
    --it;
    snprintf(text, sizeof text, "%s+%#zx", it->second.name.c_str(), size_t{address - it->first});
    return text;
  }

  static std::string source_line(uint32_t pc) {
    Dl_info module;
    if (!dladdr(__ehdr_start, &module)) return "?";
    char command[600];
    snprintf(command, sizeof command, "addr2line -Cfpie '%s' 0x%x 2>/dev/null", module.dli_fname, pc - 1);
    std::string text;
    if (FILE* pipe = popen(command, "r")) {
      char line[512];
      while (fgets(line, sizeof line, pipe)) text += text.empty() ? line : std::string("       ") + line;
      pclose(pipe);
    }
    while (!text.empty() && text.back() == '\n') text.pop_back();
    return text;
  }

  unsigned num_threads_ = 0, threads_per_block_ = 1;
  std::vector<ThreadState> threads_;
  std::unordered_map<uintptr_t, AtomicState> atomics_;
  std::unordered_map<uintptr_t, std::unique_ptr<Cell[]>> pages_;
  uintptr_t page_number_ = ~uintptr_t{0};
  Cell* page_ = nullptr;
  std::vector<std::vector<Access>> read_lists_;  // [0] stays empty
  std::vector<uint32_t> idle_lists_;
  std::set<std::string> distinct_;
  std::string report_;
  int findings_ = 0;
};

RaceChecker checker;

void hook(void* address, size_t bytes, bool write, void* pc) {
  if (!current) return;
  maybe_yield(options.preempt_access);
  checker.access(reinterpret_cast<uintptr_t>(address), bytes, write, false, pc);
}

}  // namespace
}  // namespace emu

#define EMU_HOOKS(n)                                     \
  extern "C" void __tsan_read##n(void* p) {              \
    emu::hook(p, n, false, __builtin_return_address(0)); \
  }                                                      \
  extern "C" void __tsan_write##n(void* p) {             \
    emu::hook(p, n, true, __builtin_return_address(0));  \
  }                                                      \
  extern "C" void __tsan_unaligned_read##n(void* p) {    \
    emu::hook(p, n, false, __builtin_return_address(0)); \
  }                                                      \
  extern "C" void __tsan_unaligned_write##n(void* p) {   \
    emu::hook(p, n, true, __builtin_return_address(0));  \
  }
EMU_HOOKS(1)
EMU_HOOKS(2)
EMU_HOOKS(4)
EMU_HOOKS(8)
EMU_HOOKS(16)
extern "C" void __tsan_read_range(void* p, size_t n) {
  emu::hook(p, n, false, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void* p, size_t n) {
  emu::hook(p, n, true, __builtin_return_address(0));
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_vptr_read(void**) {}
// Host code of the standard library in the instrumented file; no kernel uses these.
extern "C" int __tsan_atomic32_fetch_add(volatile int* p, int v, int) {
  const int old = *p;
  *p = old + v;
  return old;
}
extern "C" char __tsan_atomic8_load(const volatile char* p, int) {
  return *p;
}
