// The text of an exception that a call is expected to throw.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>

namespace dalle::testing {

/// The message of the E that `call` throws; a test failure and "" where it throws none.
template <class E>
std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const E& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

}  // namespace dalle::testing
