// The instruction set of the CPU kernel, chosen once at run time, never by compiler flags.
#pragma once

#include <cstdint>

#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#define UNITE_X86 1
#else
#define UNITE_X86 0
#endif

namespace unite {

enum class Isa : int32_t { kScalar = 0, kAvx2 = 1, kAvx512 = 2 };

// The widest that this processor and its operating system support.
Isa best_isa();

// The one in use: best_isa() unless set_isa() has set another.
Isa active_isa();

// For tests and measurements. Returns false and changes nothing if the processor does not support it.
bool set_isa(Isa isa);

const char* isa_name(Isa isa);

}  // namespace unite
