#include "dalle/core/files.h"

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "dalle/core/error.h"
#include "dalle/core/str.h"

namespace dalle {
namespace {

[[noreturn]] void fail(const std::string& what, const std::filesystem::path& path) {
  const int code = errno;
  std::string hint;
  if (code == ENOSPC || code == EDQUOT) hint = "free some disk space; nothing that was there before has been changed";
  throw FileError(Problem{what + " " + path.string(), "", std::strerror(code), hint});
}

struct Descriptor {
  int value;
  ~Descriptor() {
    if (value >= 0) ::close(value);
  }
};

void write_all(int descriptor, const char* data, size_t size, const std::filesystem::path& path) {
  while (size > 0) {
    const ssize_t written = ::write(descriptor, data, size);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("cannot write", path);
    data += written;
    size -= static_cast<size_t>(written);
  }
}

}  // namespace

std::string read_file(const std::filesystem::path& path) {
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.value < 0) fail("cannot read", path);
  std::string content;
  char buffer[1 << 16];
  for (;;) {
    const ssize_t count = ::read(file.value, buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail("cannot read", path);
    if (count == 0) return content;
    content.append(buffer, static_cast<size_t>(count));
  }
}

AtomicFile::AtomicFile(std::filesystem::path path)
    : path_(std::move(path)), temporary_(str(path_.string(), ".tmp-", ::getpid())) {
  descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor_ < 0) fail("cannot create", temporary_);
}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  write_all(descriptor_, reinterpret_cast<const char*>(bytes.data()), bytes.size(), path_);
}

void AtomicFile::write(std::string_view text) { write_all(descriptor_, text.data(), text.size(), path_); }

void AtomicFile::commit() {
  if (::fsync(descriptor_) != 0) fail("cannot flush", path_);
  const int closing = descriptor_;
  descriptor_ = -1;
  if (::close(closing) != 0 || ::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const int code = errno;
    ::unlink(temporary_.c_str());
    errno = code;
    fail("cannot write", path_);
  }
  sync_directory(path_.has_parent_path() ? path_.parent_path() : std::filesystem::path("."));
}

void write_file(const std::filesystem::path& path, std::string_view content) {
  AtomicFile file(path);
  file.write(content);
  file.commit();
}

void sync_directory(const std::filesystem::path& directory) {
  const Descriptor handle{::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (handle.value < 0) fail("cannot open directory", directory);
  if (::fsync(handle.value) != 0 && errno != EINVAL) fail("cannot flush directory", directory);
}

uint64_t free_disk_bytes(const std::filesystem::path& path) {
  struct statvfs info {};
  if (::statvfs(path.c_str(), &info) != 0) fail("cannot ask the file system of", path);
  return static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
}

void append_line(const std::filesystem::path& path, std::string_view line) {
  const Descriptor file{::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644)};
  if (file.value < 0) fail("cannot open", path);
  std::string whole(line);
  whole += '\n';
  write_all(file.value, whole.data(), whole.size(), path);
}

}  // namespace dalle
