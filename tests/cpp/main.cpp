// Runs the tests of one program: all, or those named. The exit status is 0 if all passed.
#include <cstdio>
#include <cstring>
#include <exception>

#include "check.h"

int main(int argc, char** argv) {
  int ran = 0, failed = 0;
  for (const unite_test::TestCase& test : unite_test::tests()) {
    bool chosen = argc == 1;
    for (int i = 1; i < argc; ++i) chosen = chosen || std::strcmp(argv[i], test.name) == 0;
    if (!chosen) continue;
    ++ran;
    try {
      test.body();
      std::printf("passed %s\n", test.name);
    } catch (const std::exception& error) {
      ++failed;
      std::printf("FAILED %s\n  %s\n", test.name, error.what());
    }
  }
  if (ran == 0 || (argc > 1 && ran != argc - 1)) {
    std::printf("no such test among %zu\n", unite_test::tests().size());
    return 2;
  }
  std::printf("%d of %d passed\n", ran - failed, ran);
  return failed == 0 ? 0 : 1;
}
