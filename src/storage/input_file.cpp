#include "input_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "dalle/core/error.h"
#include "dalle/core/str.h"

namespace dalle::storage {

InputFile::InputFile(std::filesystem::path path) : path_(std::move(path)) {
  descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor_ < 0) throw FileError(str(path_.string(), ": cannot open: ", std::strerror(errno)));
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor_);
    throw FileError(Problem{.place = path_.string(), .expected = "a regular file", .got = "something else"});
  }
  size_ = static_cast<uint64_t>(status.st_size);
}

InputFile::~InputFile() { ::close(descriptor_); }

void InputFile::read_at(uint64_t offset, std::span<std::byte> bytes) const {
  constexpr size_t kPiece = size_t{1} << 30;  // read(2) takes at most 2 GiB
  while (!bytes.empty()) {
    const ssize_t got = ::pread(descriptor_, bytes.data(), std::min(bytes.size(), kPiece), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw FileError(str(path_.string(), ": cannot read at byte ", offset, ": ", std::strerror(errno)));
    if (got == 0) {
      throw FileError(Problem{.place = path_.string(),
                              .expected = str(bytes.size(), " more bytes at byte ", offset),
                              .got = "the end of the file"});
    }
    offset += static_cast<uint64_t>(got);
    bytes = bytes.subspan(static_cast<size_t>(got));
  }
}

}  // namespace dalle::storage
