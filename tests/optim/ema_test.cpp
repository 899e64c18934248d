#include "dalle/optim/ema.h"

#include "dalle/core/error.h"
#include "optim/model.h"
#include "support/tensor_matchers.h"

namespace dalle::optim {
namespace {

using testing::bitwise_equal;

void add_to_all(TestModel& model, double amount) {
  for (const auto& [name, parameter] : model.named_parameters()) parameter->tensor.detach().add_(amount);
}

TEST(Ema, FollowsTheFormula) {
  TestModel model;
  Ema ema(model.named_parameters(), 0.999);
  Tensor expected = model.kernel.tensor.detach().to(at::kDouble).clone();
  EXPECT_TRUE(bitwise_equal(*storage::find_tensor(ema.tensors(), "kernel"), model.kernel.tensor));
  for (int64_t step = 1; step <= 50; ++step) {
    add_to_all(model, 0.1);
    ema.update(step);
    expected = 0.999 * expected + 0.001 * model.kernel.tensor.detach().to(at::kDouble);
  }
  EXPECT_TRUE(testing::close_to(*storage::find_tensor(ema.tensors(), "kernel"), expected, 1e-6));
}

TEST(Ema, AFlagSkipsAnUpdate) {
  TestModel plain, flagged;
  Ema expected(plain.named_parameters(), 0.9), actual(flagged.named_parameters(), 0.9);
  for (int64_t step = 1; step <= 4; ++step) {
    add_to_all(plain, 0.1);
    add_to_all(flagged, 0.1);
    if (step != 3) expected.update(step);
    actual.update(step, step == 3 ? at::ones({}) : at::zeros({}));
  }
  for (size_t i = 0; i < expected.tensors().size(); ++i) {
    EXPECT_TRUE(bitwise_equal(actual.tensors()[i].tensor, expected.tensors()[i].tensor)) << expected.tensors()[i].name;
  }
}

TEST(Ema, ActsOnEveryTwentyFifthUpdateOnly) {
  TestModel model;
  Ema ema(model.named_parameters(), 0.99, 25);
  const Tensor start = model.bias.tensor.detach().clone();
  add_to_all(model, 1);
  for (int64_t step = 1; step <= 24; ++step) ema.update(step);
  EXPECT_TRUE(bitwise_equal(*storage::find_tensor(ema.tensors(), "bias"), start));
  for (int64_t step = 25; step <= 99; ++step) ema.update(step);  // 25, 50, 75
  EXPECT_TRUE(testing::close_to(*storage::find_tensor(ema.tensors(), "bias"), start + (1 - 0.99 * 0.99 * 0.99), 1e-6));
}

TEST(Ema, ScopeSwapsTheWeightsAndRestoresThemBitwise) {
  TestModel model;
  Ema ema(model.named_parameters(), 0.5);
  add_to_all(model, 1);
  ema.update(1);
  const Tensor weights = model.matrix.tensor.detach().clone();
  const Tensor average = storage::find_tensor(ema.tensors(), "matrix")->clone();
  const void* data = model.matrix.tensor.data_ptr();
  model.matrix.tensor.sum().backward();
  {
    const EmaScope scope(ema);
    EXPECT_TRUE(bitwise_equal(model.matrix.tensor, average));
    EXPECT_FALSE(model.matrix.tensor.requires_grad());
    EXPECT_EQ(model.kernel.tensor.strides(), at::IntArrayRef({27, 1, 9, 3}));
    EXPECT_THROW(EmaScope{ema}, c10::Error);
    EXPECT_THROW(ema.update(2), c10::Error);
  }
  EXPECT_TRUE(bitwise_equal(model.matrix.tensor, weights));
  EXPECT_EQ(model.matrix.tensor.data_ptr(), data);
  EXPECT_TRUE(model.matrix.tensor.requires_grad());
  EXPECT_TRUE(model.matrix.tensor.grad().defined());
  EXPECT_TRUE(bitwise_equal(*storage::find_tensor(ema.tensors(), "matrix"), average));
}

TEST(Ema, ScopeEndsWithAnException) {
  TestModel model;
  Ema ema(model.named_parameters(), 0.5);
  add_to_all(model, 1);
  const Tensor weights = model.matrix.tensor.detach().clone();
  try {
    const EmaScope scope(ema);
    throw std::runtime_error("evaluation failed");
  } catch (const std::runtime_error&) {
  }
  EXPECT_TRUE(bitwise_equal(model.matrix.tensor, weights));
}

TEST(Ema, LoadsWhatItSavedAndRefusesOthers) {
  TestModel model, other;
  Ema saved(model.named_parameters(), 0.5), loaded(other.named_parameters(), 0.5);
  add_to_all(model, 1);
  saved.update(1);
  std::vector<storage::NamedTensor> file;
  for (const auto& [name, tensor] : saved.tensors()) file.push_back({name, tensor.clone(at::MemoryFormat::Contiguous)});
  loaded.load(file);
  for (size_t i = 0; i < file.size(); ++i) EXPECT_TRUE(bitwise_equal(loaded.tensors()[i].tensor, file[i].tensor));
  auto missing = file;
  missing.pop_back();
  EXPECT_NE(message_of<CheckpointError>([&] { loaded.load(missing); }).find("'late'"), std::string::npos);
  auto extra = file;
  extra.push_back({"more", at::zeros({1})});
  EXPECT_NE(message_of<CheckpointError>([&] { loaded.load(extra); }).find("4 tensors"), std::string::npos);
  auto reshaped = file;
  reshaped[0].tensor = reshaped[0].tensor.reshape({4, 3});
  EXPECT_NE(message_of<CheckpointError>([&] { loaded.load(reshaped); }).find("[3, 4]"), std::string::npos);
  EXPECT_TRUE(bitwise_equal(loaded.tensors()[3].tensor, file[3].tensor));
}

TEST(Ema, RefusesSettingsWithoutMeaning) {
  TestModel model;
  EXPECT_THROW(Ema(model.named_parameters(), 1.0), c10::ValueError);
  EXPECT_THROW(Ema(model.named_parameters(), 0.9, 0), c10::ValueError);
}

TEST(Ema, ThePapersRatesAgree) { EXPECT_NEAR(std::pow(0.99, 1.0 / 25), 0.999598, 5e-7); }

}  // namespace
}  // namespace dalle::optim
