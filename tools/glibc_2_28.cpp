// Symbols that newer toolchains use and manylinux_2_28 (glibc 2.28, libstdc++ of GCC 8) does not have, made from those
// that it has. tools/build_wheel.sh links this into each module of the wheel, and nothing of it leaves the module.
#include <pthread.h>

#include <new>

#define LOCAL __attribute__((visibility("hidden")))

// The old versions of functions that newer C libraries have in a new version as well.
extern "C" {
double old_exp(double);
double old_log(double);
int old_pthread_once(pthread_once_t*, void (*)());
}
__asm__(
    ".symver old_exp, exp@GLIBC_2.2.5\n"
    ".symver old_log, log@GLIBC_2.2.5\n"
    ".symver old_pthread_once, pthread_once@GLIBC_2.2.5\n");

extern "C" {
LOCAL double new_exp(double x) __asm__("exp");
LOCAL double new_log(double x) __asm__("log");
double new_exp(double x) {  // new in 2.29: errors are not told to matherr
  return old_exp(x);
}
double new_log(double x) {
  return old_log(x);
}
LOCAL int pthread_once(pthread_once_t* control, void (*routine)()) {  // moved to libc in 2.34
  return old_pthread_once(control, routine);
}
// New in 2.32: whether the process has one thread, so that shared_ptr may count without atomics. Never assume it.
LOCAL char __libc_single_threaded = 0;
}

namespace std {
LOCAL void __throw_bad_array_new_length() {  // GCC 11
  throw bad_array_new_length();
}
}  // namespace std

// GCC 11 writes the constructor and the destructor of exception_ptr inline, on top of two new functions. The old
// library has the constructor and the destructor.
extern "C" {
void exception_ptr_copy(void* self, const void* other) __asm__("_ZNSt15__exception_ptr13exception_ptrC1ERKS0_");
void exception_ptr_destroy(void* self) __asm__("_ZNSt15__exception_ptr13exception_ptrD1Ev");
LOCAL void exception_ptr_add(void* self) __asm__("_ZNSt15__exception_ptr13exception_ptr9_M_addrefEv");
LOCAL void exception_ptr_release(void* self) __asm__("_ZNSt15__exception_ptr13exception_ptr10_M_releaseEv");

void exception_ptr_add(void* self) {
  void* counted = nullptr;  // a copy that is never destroyed
  exception_ptr_copy(&counted, self);
}
void exception_ptr_release(void* self) {
  exception_ptr_destroy(self);
  *static_cast<void**>(self) = nullptr;
}
}
