// A vector-quantised dVAE serves the stages after it as the paper's does.
#include <c10/core/GradMode.h>

#include <cmath>

#include "dalle/models/load.h"
#include "training/tiny_runs.h"

namespace dalle::training {
namespace {

TEST(VqPipeline, APriorLearnsAndDrawsItsCodes) {
  const testing::TempDirectory scratch("vq-pipeline");
  ASSERT_TRUE(train(tiny_vq(4), scratch / "dvae"));
  auto config = tiny_prior(2);
  config.dvae = scratch / "dvae";
  ASSERT_TRUE(train(config, scratch / "prior"));  // with a preview: captions are sampled and decoded
  EXPECT_EQ(train_values(scratch / "prior", "image_loss").size(), 2U);
  EXPECT_NEAR(train_values(scratch / "prior", "image_loss").front(), std::log(16.0), 0.5);
  bool sampled = false;
  for (const auto& entry : fs::directory_iterator(scratch / "prior/samples")) {
    sampled = sampled || entry.path().filename().string().ends_with("00000002.png");
  }
  EXPECT_TRUE(sampled);
  EXPECT_EQ(latest(scratch / "prior").identities.at("dvae"), models::load_dvae(scratch / "dvae", {}).identity);
}

TEST(VqPipeline, ALoadedModelIsTheAveragedOne) {
  const testing::TempDirectory scratch("vq-load");
  const auto config = tiny_vq(6);
  ASSERT_TRUE(train(config, scratch / "dvae"));
  const c10::NoGradGuard no_grad;
  const auto checkpoint = latest(scratch / "dvae");
  const auto loaded = models::load_dvae(scratch / "dvae", {});
  EXPECT_TRUE(testing::bitwise_equal(loaded.model->quantizer->codebook.tensor,
                                     *storage::find_tensor(checkpoint.ema, "quantizer.codebook")));
  EXPECT_FALSE(checkpoint.model.empty());
  EXPECT_FALSE(testing::bitwise_equal(*storage::find_tensor(checkpoint.ema, "quantizer.codebook"),
                                      *storage::find_tensor(checkpoint.model, "quantizer.codebook")));
  for (const auto& [name, tensor] : checkpoint.optimizer) EXPECT_FALSE(name.starts_with("quantizer.")) << name;
  const Tensor codes = loaded.model->encode(at::rand({2, 3, 16, 16}));
  EXPECT_EQ(loaded.model->decode(codes).sizes(), (std::vector<int64_t>{2, 3, 16, 16}));
}

}  // namespace
}  // namespace dalle::training
