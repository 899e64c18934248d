// Exceptions for what a user can cause. Their text is ready to print: place, what was expected, what came, what to do.
// Tensor contracts use TORCH_CHECK_VALUE; our own bugs use TORCH_INTERNAL_ASSERT. Only cli/ and tests catch.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

namespace dalle {

/// The four parts of a good message; empty parts are left out.
struct Problem {
  std::string place;     // "config.yaml:12 (trainer.batch_size)"
  std::string expected;  // "an integer >= 1"
  std::string got;       // "'many'"
  std::string hint;      // what to do next
};

/// "PLACE: expected EXPECTED, got GOT\n  hint: HINT"
std::string to_string(const Problem& problem);

class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message) : std::runtime_error(message) {}
  explicit Error(const Problem& problem) : std::runtime_error(to_string(problem)) {}
};

/// Wrong usage or config, including paths that do not exist at start and models that do not fit together: exit code 2.
class ConfigError : public Error {
  using Error::Error;
};

/// Bad or missing data beyond what the config tolerates: exit code 1.
class DataError : public Error {
  using Error::Error;
};

/// A checkpoint or weight file that is damaged, incomplete or not what its manifest says: exit code 1.
class CheckpointError : public Error {
  using Error::Error;
};

/// A file could not be read or written: exit code 1.
class FileError : public Error {
  using Error::Error;
};

/// The candidate nearest to `name` by edit distance, or "" where none is near enough to be a likely slip.
std::string nearest_name(const std::string& name, const std::vector<std::string>& candidates);

}  // namespace dalle
