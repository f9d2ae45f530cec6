// The few names of glog that OneFlow's headers use. The wheel carries no logging.h, and hides its glog's symbols.
// A failed check ends the process, as glog's does.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <ostream>
#include <utility>

namespace google {

// Swallows what is streamed into it.
struct NullStream {
  template <typename T>
  NullStream& operator<<(const T&) {
    return *this;
  }
  NullStream& operator<<(std::ostream& (*)(std::ostream&)) { return *this; }
};

// Makes both branches of a check's conditional expression void.
struct Voidify {
  void operator&(NullStream&) {}
  void operator&(NullStream&&) {}
};

[[noreturn]] inline NullStream fail(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: check failed: %s\n", file, line, condition);
  std::abort();
}

template <typename T>
T check_not_null(T&& pointer, const char* name, const char* file, int line) {
  if (!pointer) fail(name, file, line);
  return std::forward<T>(pointer);
}

}  // namespace google

#define LOG(severity) google::NullStream()
#define VLOG(level) google::NullStream()
#define LOG_IF(severity, condition) google::NullStream()
#define LOG_FIRST_N(severity, n) google::NullStream()
#define LOG_EVERY_N(severity, n) google::NullStream()
#define CHECK(condition) (condition) ? (void)0 : google::Voidify() & google::fail(#condition, __FILE__, __LINE__)
#define CHECK_EQ(a, b) CHECK((a) == (b))
#define CHECK_NE(a, b) CHECK((a) != (b))
#define CHECK_LT(a, b) CHECK((a) < (b))
#define CHECK_LE(a, b) CHECK((a) <= (b))
#define CHECK_GT(a, b) CHECK((a) > (b))
#define CHECK_GE(a, b) CHECK((a) >= (b))
#define CHECK_NOTNULL(pointer) google::check_not_null(pointer, #pointer, __FILE__, __LINE__)
#define CHECK_STREQ(a, b) CHECK(true)
#define PCHECK(condition) CHECK(condition)
#define DCHECK(condition) CHECK(condition)
#define DCHECK_EQ(a, b) CHECK_EQ(a, b)
#define DCHECK_NE(a, b) CHECK_NE(a, b)
#define DCHECK_LT(a, b) CHECK_LT(a, b)
#define DCHECK_GE(a, b) CHECK_GE(a, b)
