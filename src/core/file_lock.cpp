#include "dalle/core/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "dalle/core/error.h"
#include "dalle/core/logging.h"
#include "dalle/core/str.h"

namespace dalle {
namespace {

std::string holder_of(int descriptor) {
  char text[32] = {};
  const ssize_t size = ::pread(descriptor, text, sizeof text - 1, 0);
  return size > 0 ? std::string(text, std::strcspn(text, "\n")) : std::string("unknown");
}

void record_holder(int descriptor, const std::filesystem::path& path) {
  const std::string pid = str(::getpid(), "\n");
  if (::ftruncate(descriptor, 0) != 0 || ::pwrite(descriptor, pid.data(), pid.size(), 0) < 0) {
    log_warning(str("cannot write the process id into ", path.string()));
  }
}

}  // namespace

FileLock::FileLock(const std::filesystem::path& path, const std::string& what, const std::string& hint) {
  descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (descriptor_ < 0) throw FileError(Problem{"cannot open " + path.string(), "", std::strerror(errno), ""});
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) == 0) {
    record_holder(descriptor_, path);
    return;
  }
  if (errno != EWOULDBLOCK) {
    log_warning(str("cannot lock ", path.string(), " (", std::strerror(errno), "): do not start a second run there"));
    return;
  }
  const std::string holder = holder_of(descriptor_);
  ::close(std::exchange(descriptor_, -1));
  throw ConfigError(Problem{what, "a directory that no other process writes", "one locked by process " + holder, hint});
}

FileLock::FileLock(FileLock&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}

FileLock& FileLock::operator=(FileLock&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

FileLock::~FileLock() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

}  // namespace dalle
