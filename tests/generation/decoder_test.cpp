// Which way of decoding a prior gets.
#include "dalle/generation/decoder.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dalle/core/error.h"
#include "dalle/generation/fused_model.h"
#include "dalle/generation/prior_decoder.h"
#include "generation/random_prior.h"

namespace dalle::generation {
namespace {

template <class Way>
bool is_a(const std::unique_ptr<DecodingModel>& model) {
  return dynamic_cast<Way*>(model.get()) != nullptr;
}

TEST(DecodingModel, TheCpuGetsTheFusedWayAndF64TheOperators) {
  const auto make = [](at::ScalarType dtype, const DecodeOptions& options) {
    static std::vector<std::unique_ptr<models::Prior>> priors;
    priors.push_back(random_prior(prior_cases().front(), 2, dtype));
    return make_decoding_model(*priors.back(), options);
  };
  EXPECT_TRUE(is_a<FusedModel>(make(at::kFloat, {})));
  EXPECT_TRUE(is_a<FusedModel>(make(at::kBFloat16, {})));
  EXPECT_TRUE(is_a<FusedModel>(make(at::kFloat, {.int8_weights = true})));
  EXPECT_TRUE(is_a<OperatorModel>(make(at::kFloat, {.by_operators = true})));
  EXPECT_TRUE(is_a<OperatorModel>(make(at::kDouble, {})));
  EXPECT_THROW(make(at::kDouble, {.int8_weights = true}), ConfigError);
  EXPECT_THROW(make(at::kFloat, {.int8_weights = true, .by_operators = true}), ConfigError);
}

TEST(DecodingModel, CandidatesTakeWhatTheirCachesHold) {
  const auto prior = random_prior({"row", {layers::AttentionKind::kRow}}, 4, at::kBFloat16);
  EXPECT_EQ(make_decoding_model(*prior)->candidate_bytes(), 2 * 16 * 12 * 2);  // a ring of W slots: a block
  EXPECT_EQ(make_decoding_model(*prior, {.by_operators = true})->candidate_bytes(), 2 * 16 * 12 * 2);
}

}  // namespace
}  // namespace dalle::generation
