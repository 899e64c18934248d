#include "dalle/core/memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

namespace dalle {
namespace {

namespace fs = std::filesystem;

// The number a file starts with; none for "max", or where there is no such file.
std::optional<int64_t> number_in(const fs::path& path) {
  int64_t number = 0;
  if (std::ifstream(path) >> number) return number;
  return std::nullopt;
}

// Bytes of files that the group `folder` has read and the system gives up where memory is short; 0 where that is not said.
int64_t cached_in(const fs::path& folder, const std::string& key) {
  std::ifstream statistics(folder / "memory.stat");
  int64_t bytes = 0;
  for (std::string name; statistics >> name >> bytes;) {
    if (name == key) return bytes;
  }
  return 0;
}

// What is free in the group `path` (absolute within the hierarchy) and those above it.
int64_t free_in_groups(const fs::path& hierarchy, const fs::path& path, const char* limit_name, const char* used_name,
                       const char* cached_key) {
  int64_t free = std::numeric_limits<int64_t>::max();
  for (fs::path group = path.relative_path();; group = group.parent_path()) {
    const auto limit = number_in(hierarchy / group / limit_name), used = number_in(hierarchy / group / used_name);
    if (limit && used) {
      const int64_t cached = std::min(*used, cached_in(hierarchy / group, cached_key));
      free = std::min(free, std::max<int64_t>(0, *limit - *used + cached));
    }
    if (group.empty()) return free;
  }
}

}  // namespace

int64_t available_memory_bytes(const fs::path& root) {
  constexpr int64_t kUnknown = std::numeric_limits<int64_t>::max();
  int64_t available = kUnknown;
  std::ifstream meminfo(root / "proc/meminfo");
  for (std::string line; std::getline(meminfo, line);) {
    if (line.starts_with("MemAvailable:")) available = std::stoll(line.substr(13)) * 1024;
  }
  const fs::path groups = root / "sys/fs/cgroup";
  std::ifstream memberships(root / "proc/self/cgroup");  // lines "id:controllers:path"
  for (std::string line; std::getline(memberships, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const std::string path = line.substr(second + 1);
    if (controllers == ",,") {
      available = std::min(available, free_in_groups(groups, path, "memory.max", "memory.current", "inactive_file"));
    } else if (controllers.find(",memory,") != std::string::npos) {
      available = std::min(available, free_in_groups(groups / "memory", path, "memory.limit_in_bytes",
                                                     "memory.usage_in_bytes", "total_inactive_file"));
    }
  }
  return available == kUnknown ? 0 : available;
}

}  // namespace dalle
