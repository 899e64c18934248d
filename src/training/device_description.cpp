#include "dalle/training/device_description.h"

#include <algorithm>
#include <system_error>

#include "dalle/core/error.h"
#include "dalle/core/str.h"

namespace dalle::training {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> device_folders(const fs::path& beside) {
  std::error_code ignored;
  std::vector<fs::path> folders;
  for (const fs::path& start :
       {fs::absolute(beside), fs::current_path(), fs::read_symlink("/proc/self/exe", ignored)}) {
    for (fs::path at = start; !at.empty(); at = at.parent_path()) {
      const fs::path folder = at / "configs" / "devices";
      if (fs::is_directory(folder, ignored)) folders.push_back(folder);
      if (at == at.parent_path()) break;
    }
  }
  return folders;
}

}  // namespace

double DeviceDescription::matrix_speed(at::ScalarType dtype) const {
  const double peak = dtype == at::kBFloat16 ? bf16_flops : dtype == at::kHalf ? fp16_flops : f32_flops;
  if (peak > 0) return peak * achievable_share;
  throw ConfigError(
      Problem{name, "a number format that this device multiplies", dalle::str(dtype), "choose --precision"});
}

DeviceDescription load_device(const std::string& name, const fs::path& beside) {
  if (fs::is_regular_file(name)) return config::load_config_file<DeviceDescription>(name);
  std::vector<std::string> known;
  for (const auto& folder : device_folders(beside)) {
    if (const fs::path file = folder / (name + ".yaml"); !name.empty() && fs::is_regular_file(file)) {
      return config::load_config_file<DeviceDescription>(file);
    }
    for (const auto& entry : fs::directory_iterator(folder)) known.push_back(entry.path().stem().string());
  }
  std::sort(known.begin(), known.end());
  known.erase(std::unique(known.begin(), known.end()), known.end());
  throw ConfigError(Problem{"--device",
                            str("a device description: a file, or one of: ", config::detail::join_names(known, ", ")),
                            str("'", name, "'"), "copy a file of configs/devices/ and fill in your device's numbers"});
}

}  // namespace dalle::training
