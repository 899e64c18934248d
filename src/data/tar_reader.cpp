#include "dalle/data/tar_reader.h"

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/str.h"

namespace dalle::data {
namespace {

struct FreeArchive {
  void operator()(archive* a) const { archive_read_free(a); }
};
using ArchivePtr = std::unique_ptr<archive, FreeArchive>;

std::string error_text(archive* a) {
  const char* text = archive_error_string(a);
  return text != nullptr ? text : "unknown error";
}

/// Null, with the reason in `problem`, where the file is not a tar.
ArchivePtr open_archive(const std::filesystem::path& path, std::string& problem) {
  ArchivePtr a(archive_read_new());
  archive_read_support_format_tar(a.get());
  // One by one: "all" would also start external programs.
  archive_read_support_filter_gzip(a.get());
  archive_read_support_filter_bzip2(a.get());
  archive_read_support_filter_xz(a.get());
  archive_read_support_filter_zstd(a.get());
  archive_read_support_filter_lz4(a.get());
  constexpr size_t kBlockSize = 1 << 16;
  if (archive_read_open_filename(a.get(), path.c_str(), kBlockSize) == ARCHIVE_OK) return a;
  problem = str("not a tar file (", error_text(a.get()), ")");
  return nullptr;
}

/// Reads up to `size` bytes of the current entry; fewer where the file ends or is damaged. Grows with what is there, so
/// that a header that promises too much costs no memory.
std::string read_content(archive* a, int64_t size) {
  std::string content;
  char buffer[1 << 14];
  while (static_cast<int64_t>(content.size()) < size) {
    const auto count = archive_read_data(a, buffer, sizeof buffer);
    if (count <= 0) break;
    content.append(buffer, static_cast<size_t>(count));
  }
  return content;
}

/// A whole tar ends with a block of zeros. What libarchive takes for the end may be a cut at an entry's border.
bool ends_with_marker(const std::filesystem::path& path, int64_t file_size) {
  constexpr int64_t kBlock = 512;
  if (file_size < kBlock) return false;
  const std::string tail = read_range(path, file_size - kBlock, kBlock);
  return std::all_of(tail.begin(), tail.end(), [](char c) { return c == '\0'; });
}

TarEntry read_entry(const std::filesystem::path& path, archive* a, archive_entry* header, bool compressed,
                    int64_t file_size, const std::function<bool(std::string_view)>& wants_content) {
  TarEntry entry;
  const char* name = archive_entry_pathname(header);
  entry.name = name != nullptr ? name : "";
  entry.size = archive_entry_size(header);
  if (compressed || archive_entry_sparse_count(header) > 0) {
    entry.content = read_content(a, entry.size);
    entry.missing = entry.size - static_cast<int64_t>(entry.content.size());
    return entry;
  }
  entry.offset = archive_filter_bytes(a, 0);
  entry.missing = std::max<int64_t>(0, entry.offset + entry.size - file_size);
  // Not through libarchive, which drops a whole content whose padding is cut off.
  if (entry.missing == 0 && wants_content(entry.name)) entry.content = read_range(path, entry.offset, entry.size);
  return entry;
}

}  // namespace

TarWalk walk_tar(const std::filesystem::path& path, const std::function<bool(std::string_view)>& wants_content,
                 const std::function<void(TarEntry&&)>& visit) {
  const auto file_size = static_cast<int64_t>(std::filesystem::file_size(path));
  if (file_size == 0) return {.problem = "the file is empty"};
  read_range(path, 0, 1);  // throws where the file cannot be read
  TarWalk walk;
  const ArchivePtr a = open_archive(path, walk.problem);
  if (a == nullptr) return walk;
  while (true) {
    archive_entry* header = nullptr;
    const int status = archive_read_next_header(a.get(), &header);
    walk.compressed = archive_filter_code(a.get(), 0) != ARCHIVE_FILTER_NONE;
    if (status == ARCHIVE_EOF) break;
    if (status != ARCHIVE_OK && status != ARCHIVE_WARN) {
      walk.problem = error_text(a.get());
      return walk;
    }
    if (archive_entry_filetype(header) != AE_IFREG || archive_entry_hardlink(header) != nullptr) continue;
    TarEntry entry = read_entry(path, a.get(), header, walk.compressed, file_size, wants_content);
    ++walk.num_entries;
    const int64_t missing = entry.missing;
    visit(std::move(entry));
    if (missing > 0) {
      walk.problem = str("the file ends inside an entry, ", missing, " bytes are missing");
      return walk;
    }
  }
  if (!walk.compressed && !ends_with_marker(path, file_size)) {
    walk.problem = "the file ends without the end-of-archive marker; later entries may be missing";
  }
  return walk;
}

std::string read_range(const std::filesystem::path& path, int64_t offset, int64_t size) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) throw FileError(str("cannot open ", path.string(), ": ", std::strerror(errno)));
  std::string bytes(static_cast<size_t>(size), '\0');
  int64_t done = 0;
  int error = 0;
  while (done < size) {
    const auto count = ::pread(descriptor, bytes.data() + done, static_cast<size_t>(size - done), offset + done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      error = count < 0 ? errno : 0;
      break;
    }
    done += count;
  }
  ::close(descriptor);
  if (done == size) return bytes;
  throw FileError(Problem{.place = path.string(),
                          .expected = str(size, " bytes at offset ", offset),
                          .got = error != 0 ? std::string(std::strerror(error)) : str(done, " bytes"),
                          .hint = "the file changed since it was opened"});
}

}  // namespace dalle::data
