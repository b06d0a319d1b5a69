// Which instruction set the CPU path runs on: chosen once at run time, never by compiler flags.
#pragma once

#include <cstdint>

#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#define UNITE_X86 1
#else
#define UNITE_X86 0
#endif

namespace unite {

enum class Isa : int32_t { kScalar = 0, kAvx2 = 1, kAvx512 = 2 };

// The widest one this processor and its operating system support.
Isa best_isa();

// The one in use: best_isa() until set_isa() says otherwise.
Isa active_isa();

// For tests and measurements. False, and nothing changes, when the processor does not support it.
bool set_isa(Isa isa);

const char* isa_name(Isa isa);

}  // namespace unite
