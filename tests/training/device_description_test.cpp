#include "dalle/training/device_description.h"

#include <gmock/gmock.h>

#include <filesystem>

#include "support/temp_directory.h"
#include "support/thrown_message.h"

namespace dalle::training {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(DeviceDescription, ShippedFilesNameTheirSources) {
  int found = 0;
  for (const auto& entry : fs::directory_iterator(fs::path(DALLE_SOURCE_DIR) / "configs/devices")) {
    const auto device = load_device(entry.path().stem().string(), DALLE_SOURCE_DIR);
    EXPECT_FALSE(device.name.empty()) << entry.path();
    EXPECT_GE(device.sources.size(), 3u) << entry.path();
    EXPECT_GE(device.link_bandwidth, device.machine_bandwidth / static_cast<double>(device.devices_per_machine));
    ++found;
  }
  EXPECT_EQ(found, 4);
}

TEST(DeviceDescription, AnUnknownNameListsTheKnownOnes) {
  EXPECT_THAT(testing::message_of<ConfigError>([] { load_device("h1000", DALLE_SOURCE_DIR); }),
              AllOf(HasSubstr("a100, cpu, h100, v100"), HasSubstr("'h1000'")));
}

TEST(DeviceDescription, AFormatThatIsMissingIsRefused) {
  const auto device = load_device("v100", DALLE_SOURCE_DIR);
  EXPECT_EQ(device.matrix_speed(at::kHalf), 125e12 * 0.3);
  EXPECT_THAT(testing::message_of<ConfigError>([&] { device.matrix_speed(at::kBFloat16); }), HasSubstr("BFloat16"));
}

}  // namespace
}  // namespace dalle::training
