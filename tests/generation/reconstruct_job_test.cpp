// reconstruct with a small untrained dVAE: what is written, against the model asked directly, and what is refused.
#include "dalle/generation/reconstruct_job.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "dalle/config/fields.h"
#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/str.h"
#include "dalle/data/image_codec.h"
#include "dalle/data/transforms.h"
#include "dalle/models/load.h"
#include "support/temp_directory.h"
#include "support/tensor_matchers.h"
#include "support/thrown_message.h"

namespace dalle::generation {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::message_of;

const models::DvaeConfig kConfig{
    .image_size = 16, .vocab_size = 12, .hidden_dim = 8, .num_groups = 3, .decoder_init_dim = 4};

/// A dVAE's checkpoint and a few pictures.
class Reconstruct : public ::testing::Test {
 protected:
  Reconstruct() {
    models::Dvae model(kConfig);
    model.materialize(at::kCPU);
    model.initialize(3);
    storage::Checkpoint checkpoint{.kind = "dvae", .model_config_yaml = config::emit_yaml(config::dump(kConfig))};
    checkpoint.model = models::named_tensors(model);
    storage::write_bare_checkpoint(scratch / "dvae.safetensors", checkpoint);
    picture("wide.png", 20, 40);
    picture("exact.png", 16, 16);
    picture("large.png", 50, 30);
    write_file(scratch / "text.png", "no picture at all");
  }

  void picture(const std::string& name, int64_t height, int64_t width) const {
    Tensor pixels = at::arange(height * width * 3).remainder(211).to(at::kByte).view({height, width, 3});
    write_file(scratch / name, data::encode_png(pixels));
  }

  ReconstructOptions options(const std::vector<std::string>& names, int64_t size = 0) const {
    ReconstructOptions options{.dvae = scratch / "dvae.safetensors", .out = scratch / "out", .size = size};
    for (const auto& name : names) options.images.push_back(scratch / name);
    options.precision = Precision::kF32;
    options.save_tokens = true;
    return options;
  }

  /// Runs as the command does, validation included; what it printed.
  static std::string run(const ReconstructOptions& options) {
    options.validate("");
    ::testing::internal::CaptureStdout();
    const std::string message = [&] {
      try {
        EXPECT_EQ(run_reconstruct(options), 0);
      } catch (...) {
        ::testing::internal::GetCapturedStdout();
        throw;
      }
      return ::testing::internal::GetCapturedStdout();
    }();
    return message;
  }

  nlohmann::json json(const std::string& name) const { return nlohmann::json::parse(read_file(scratch / name)); }

  testing::TempDirectory scratch{"reconstruct"};
};

TEST_F(Reconstruct, WritesWhatTheModelSays) {
  const std::string said = run(options({"wide.png", "exact.png"}));
  const auto report = json("out/reconstruction.json");
  const auto dvae = models::load_dvae(scratch / "dvae.safetensors", {});
  EXPECT_EQ(report["dvae"]["identity"], dvae.identity);
  EXPECT_EQ(report["size"], 16);
  EXPECT_EQ(report["grid_size"], 4);
  ASSERT_EQ(report["pictures"].size(), 2U);
  const data::TransformOptions transform{.image_size = 16, .filter = data::ResizeFilter::kLanczos};
  for (const std::string name : {"wide", "exact"}) {
    const Tensor decoded = data::decode_picture(read_file(scratch / (name + ".png")));
    const Tensor pixels = data::transform_picture(decoded, transform, {});
    const Tensor codes = dvae.model->encode(pixels.to(at::kFloat).div(255).unsqueeze(0));
    const auto grid = json("out/" + name + ".tokens.json");
    ASSERT_EQ(grid.size(), 4U);
    for (int64_t row = 0; row < 4; ++row) {
      for (int64_t column = 0; column < 4; ++column) {
        EXPECT_EQ(grid[static_cast<size_t>(row)][static_cast<size_t>(column)], codes[0][row][column].item<int64_t>());
      }
    }
    // The pair on disk: original, a gap, reconstruction; their distance is the PSNR within 8 bits' rounding.
    const Tensor pair = data::decode_picture(read_file(scratch / ("out/" + name + ".png")));
    ASSERT_EQ(pair.sizes(), at::IntArrayRef({16, 36, 3}));
    EXPECT_TRUE(pair.narrow(1, 0, 16).permute({2, 0, 1}).equal(pixels));
    EXPECT_EQ(pair.narrow(1, 16, 4).min().item<int64_t>(), 255);
    const Tensor difference = (pair.narrow(1, 0, 16).to(at::kDouble) - pair.narrow(1, 20, 16).to(at::kDouble)) / 255;
    const double decibels = -10 * std::log10(difference.square().mean().item<double>());
    const auto& entry = report["pictures"][name == "wide" ? 0 : 1];
    EXPECT_EQ(entry["pair"], name + ".png");
    EXPECT_NEAR(entry["psnr"].get<double>(), decibels, 0.05);
    EXPECT_LE(entry["ssim"].get<double>(), 1);
    EXPECT_THAT(said, HasSubstr(name + ".png: PSNR "));
  }
  EXPECT_NEAR(report["mean_psnr"].get<double>(),
              (report["pictures"][0]["psnr"].get<double>() + report["pictures"][1]["psnr"].get<double>()) / 2, 1e-9);
  EXPECT_THAT(said, AllOf(HasSubstr("mean of 2: PSNR "), HasSubstr("contact-sheet.png")));
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(scratch / "out")) names.insert(entry.path().filename().string());
  EXPECT_EQ(names, (std::set<std::string>{"contact-sheet.png", "exact.png", "exact.tokens.json", "reconstruction.json",
                                          "wide.png", "wide.tokens.json"}));
}

TEST_F(Reconstruct, AnyMultipleOfTheDownsamplingIsASize) {
  for (const int64_t size : {4, 20, 28}) {
    auto wanted = options({"large.png"}, size);
    wanted.out = scratch / str("out-", size);
    run(wanted);
    EXPECT_EQ(json(str("out-", size, "/large.tokens.json")).size(), static_cast<size_t>(size / 4));
    EXPECT_EQ(data::decode_picture(read_file(scratch / str("out-", size, "/large.png"))).sizes(),
              at::IntArrayRef({size, 2 * size + 4, 3}));
  }
  EXPECT_THAT(message_of<ConfigError>([&] { run(options({"large.png"}, 18)); }),
              AllOf(HasSubstr("--size: expected a multiple of 4"), HasSubstr("got 18"), HasSubstr("for example 16")));
  EXPECT_THROW(run(options({"large.png"}, 2)), ConfigError);
  EXPECT_FALSE(fs::exists(scratch / "out"));
}

TEST_F(Reconstruct, BadPicturesLeaveNothing) {
  EXPECT_THAT(message_of<DataError>([&] {
                run(options({"exact.png", "text.png"}));
              }),
              AllOf(HasSubstr("text.png"), HasSubstr("a whole PNG, JPEG or WebP picture")));
  picture("small.png", 15, 90);
  EXPECT_THAT(
      message_of<DataError>([&] {
        run(options({"exact.png", "small.png"}));
      }),
      AllOf(HasSubstr("small.png: expected a shorter side of at least 16 pixels, got 90 x 15"), HasSubstr("--size")));
  EXPECT_FALSE(fs::exists(scratch / "out"));
  fs::create_directory(scratch / "out");
  EXPECT_THROW(run(options({"text.png"})), DataError);
  EXPECT_TRUE(fs::is_empty(scratch / "out")) << "a folder that was there stays";
  run(options({"exact.png"}));
}

TEST_F(Reconstruct, NamesThatAreNoPicturesAreUsageErrors) {
  fs::create_directory(scratch / "folder");
  picture("folder/wide.png", 20, 20);
  picture("contact-sheet.png", 20, 20);
  EXPECT_THAT(message_of<ConfigError>([&] { run(options({})); }), HasSubstr("expected picture files"));
  EXPECT_THAT(message_of<ConfigError>([&] { run(options({"lost.png"})); }),
              HasSubstr("lost.png: expected a picture file, got no such file"));
  EXPECT_THAT(message_of<ConfigError>([&] { run(options({"folder"})); }),
              AllOf(HasSubstr("got a folder"), HasSubstr("folder/*.png")));
  EXPECT_THAT(message_of<ConfigError>([&] {
                run(options({"wide.png", "folder/wide.png"}));
              }),
              AllOf(HasSubstr("folder/wide.png"), HasSubstr("the name of ")));
  EXPECT_THAT(message_of<ConfigError>([&] { run(options({"contact-sheet.png"})); }),
              HasSubstr("the sheet of all pictures"));
  EXPECT_FALSE(fs::exists(scratch / "out"));
}

TEST_F(Reconstruct, ResultsAreNeverMixedWithOtherFiles) {
  auto used = options({"exact.png"});
  used.out = scratch.path();
  EXPECT_THAT(message_of<ConfigError>([&] { run(used); }), HasSubstr("one with files in it"));
  used.out = scratch / "text.png";
  EXPECT_THAT(message_of<ConfigError>([&] { run(used); }), HasSubstr("got a file"));
  used.out = scratch / "text.png/out";
  EXPECT_THAT(message_of<FileError>([&] { run(used); }), HasSubstr("a folder that can be made and written"));
  used.out = "/proc/out";
  EXPECT_THROW(run(used), FileError);
}

}  // namespace
}  // namespace dalle::generation
