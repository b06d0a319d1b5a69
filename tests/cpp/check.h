// A minimal test harness.
//
// TEST(name) { CHECK(condition, "what was seen: ", value); } A failed check ends its test. The program runs all of
// its tests, or those named on its command line.
#pragma once

#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace unite_test {

struct TestCase {
  const char* name;
  std::function<void()> body;
};

inline std::vector<TestCase>& tests() {
  static std::vector<TestCase> all;
  return all;
}

struct Registration {
  Registration(const char* name, std::function<void()> body) { tests().push_back({name, std::move(body)}); }
};

template <class... Parts>
void check(const char* file, int line, const char* text, bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream message;
  message.precision(9);
  message << file << ":" << line << ": CHECK(" << text << ")";
  if constexpr (sizeof...(parts) > 0) {
    message << ": ";
    (message << ... << parts);
  }
  throw std::runtime_error(message.str());
}

}  // namespace unite_test

#define TEST(name)                                                    \
  static void name();                                                 \
  static const unite_test::Registration register_##name(#name, name); \
  static void name()

#define CHECK(...) unite_test::check(__FILE__, __LINE__, #__VA_ARGS__, __VA_ARGS__)
