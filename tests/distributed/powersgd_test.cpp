// PowerSGD's identities, over ranks that are threads.
#include "dalle/distributed/powersgd.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <mutex>

#include "dalle/config/fields.h"
#include "dalle/core/error.h"
#include "support/random_tensor.h"
#include "support/tensor_matchers.h"
#include "support/thread_ranks.h"
#include "support/thrown_message.h"

namespace dalle::distributed {
namespace {

using testing::close_to;
using testing::random_tensor;
using testing::run_thread_ranks;
using testing::ThreadRank;

const at::TensorOptions kF64 = at::TensorOptions(at::kDouble), kF32 = at::TensorOptions(at::kFloat);

/// Wide, tall, square, and one with a side of 1.
const std::vector<CompressedMatrix> kMatrices{{"wide", 12, 40}, {"tall", 48, 8}, {"square", 16, 16}, {"thin", 1, 9}};

/// The share of `rank` in the gradient of step `step`.
Tensor share(size_t matrix, int rank, int step, at::TensorOptions options = kF64, double size = 1e-2) {
  const auto seed = static_cast<uint64_t>(1 + 1000 * step + 10 * rank) + 100 * matrix;
  return random_tensor(seed, {kMatrices[matrix].rows, kMatrices[matrix].cols}).to(options) * size;
}

std::vector<Tensor> shares(int rank, int step, at::TensorOptions options = kF64) {
  std::vector<Tensor> out;
  for (size_t i = 0; i < kMatrices.size(); ++i) out.push_back(share(i, rank, step, options));
  return out;
}

/// Sum over ranks, in f64.
std::vector<Tensor> summed(std::vector<Tensor> tensors, ThreadRank& ranks) {
  for (Tensor& tensor : tensors) {
    tensor = tensor.to(at::kDouble).contiguous().clone();
    ranks.all_reduce_sum(tensor);
  }
  return tensors;
}

std::vector<Tensor> errors(const PowerSgd& powersgd) {
  std::vector<Tensor> out;
  for (size_t i = 0; i < kMatrices.size(); ++i) out.push_back(powersgd.error(i));
  return out;
}

std::vector<Tensor> reduce(PowerSgd& powersgd, const std::vector<Tensor>& gradients, ThreadRank& ranks) {
  std::vector<Tensor> others;
  Tensor norm;
  return powersgd.reduce(gradients, others, ranks, norm);
}

TEST(PowerSgd, WhatWasSentAndWhatIsLeftAddUp) {
  for (const int size : {1, 2, 4}) {
    run_thread_ranks(size, [](ThreadRank& ranks) {
      PowerSgd powersgd(kMatrices, {.rank = 3}, 5, kF64);
      for (int step = 0; step < 6; ++step) {
        const auto gradients = shares(ranks.rank(), step);
        const auto before = summed(errors(powersgd), ranks), added = summed(gradients, ranks);
        const auto sent = reduce(powersgd, gradients, ranks);
        const auto after = summed(errors(powersgd), ranks);
        for (size_t i = 0; i < kMatrices.size(); ++i) {
          EXPECT_TRUE(close_to(after[i] + sent[i], before[i] + added[i], 1e-12)) << kMatrices[i].name << " " << step;
        }
      }
    });
  }
}

TEST(PowerSgd, FullRankIsTheAllReduce) {
  run_thread_ranks(3, [](ThreadRank& ranks) {
    PowerSgd powersgd(kMatrices, {.rank = 16}, 5, kF64);
    for (int step = 0; step < 3; ++step) {
      // Every rank's own remainder does not vanish, and is not lost: the sum of all does.
      const auto gradients = shares(ranks.rank(), step);
      const auto sent = reduce(powersgd, gradients, ranks), exact = summed(gradients, ranks);
      const auto left = summed(errors(powersgd), ranks);
      for (size_t i = 0; i < kMatrices.size(); ++i) {
        EXPECT_TRUE(close_to(sent[i], exact[i], 1e-12)) << kMatrices[i].name;
        EXPECT_LT(left[i].abs().max().item<double>(), 1e-12 * exact[i].abs().max().item<double>());
      }
    }
  });
}

TEST(PowerSgd, OneRankWithFullRankLeavesNoError) {
  const auto alone = make_singleton();
  PowerSgd powersgd(kMatrices, {.rank = 1000}, 5, kF64);
  std::vector<Tensor> others;
  Tensor norm;
  const auto gradients = shares(0, 0);
  powersgd.reduce(gradients, others, *alone, norm);
  for (size_t i = 0; i < kMatrices.size(); ++i) {
    EXPECT_LT(powersgd.error(i).abs().max().item<double>(), 1e-14 * gradients[i].abs().max().item<double>() * 100);
  }
}

TEST(PowerSgd, UpdatesAddUpToTheGradients) {
  // Gradients that have a mean and vary about it, as those of mini-batches do. What was sent differs from their sum by the
  // error that is left, which stops growing: so their averages come together as 1 / updates.
  run_thread_ranks(2, [](ThreadRank& ranks) {
    PowerSgd powersgd(kMatrices, {.rank = 4}, 5, kF64);
    std::vector<Tensor> sent_total(kMatrices.size()), total(kMatrices.size());
    const auto add = [](std::vector<Tensor>& sums, const std::vector<Tensor>& parts) {
      for (size_t i = 0; i < parts.size(); ++i) sums[i] = sums[i].defined() ? sums[i] + parts[i] : parts[i];
    };
    const auto distance = [&](size_t i) {
      return ((sent_total[i] - total[i]).norm() / total[i].norm()).item<double>();
    };
    std::vector<double> first(kMatrices.size());
    for (int step = 1; step <= 500; ++step) {
      auto gradients = shares(ranks.rank(), step);
      for (size_t i = 0; i < gradients.size(); ++i) gradients[i] = gradients[i] + share(i, ranks.rank(), 0);
      add(total, summed(gradients, ranks));
      add(sent_total, reduce(powersgd, gradients, ranks));
      for (size_t i = 0; step == 1 && i < first.size(); ++i) first[i] = distance(i);
    }
    for (size_t i = 0; i < kMatrices.size(); ++i) {
      if (kMatrices[i].name == "thin") continue;  // rank 1 holds it whole
      EXPECT_GT(first[i], 0.3) << kMatrices[i].name;
      EXPECT_LT(distance(i), 0.02) << kMatrices[i].name;
    }
  });
}

TEST(PowerSgd, WithAFixedQ0TheErrorLeavesNothingInItsDirections) {
  // (I - P P^T) E Q0 = 0: the next P is made by the next gradient alone. So of gradients that never change, what the first
  // update leaves out is never sent.
  run_thread_ranks(2, [](ThreadRank& ranks) {
    PowerSgd powersgd(kMatrices, {.rank = 4}, 5, kF64);
    const auto gradients = shares(ranks.rank(), 0);
    const size_t wide = 0;
    const Tensor first = reduce(powersgd, gradients, ranks)[wide], left = summed(errors(powersgd), ranks)[wide];
    for (int step = 2; step <= 5; ++step) {
      // By as much as 1e-6 I turns the columns.
      EXPECT_TRUE(close_to(reduce(powersgd, gradients, ranks)[wide], first, 1e-3)) << step;
      EXPECT_TRUE(close_to(summed(errors(powersgd), ranks)[wide], left * step, 1e-3)) << step;
    }
  });
}

TEST(PowerSgd, TheNormIsThatOfTheGlobalGradient) {
  run_thread_ranks(3, [](ThreadRank& ranks) {
    PowerSgd powersgd(kMatrices, {.rank = 3}, 5, kF64);
    std::vector<Tensor> others{random_tensor(77 + static_cast<uint64_t>(ranks.rank()), {7}).to(kF64),
                               random_tensor(88 + static_cast<uint64_t>(ranks.rank()), {2, 3}).to(kF64)};
    const auto exact = summed(others, ranks);
    Tensor norm;
    const auto sent = powersgd.reduce(shares(ranks.rank(), 1), others, ranks, norm);
    Tensor expected = at::zeros({}, kF64);
    for (const auto& list : {sent, exact}) {
      for (const Tensor& tensor : list) expected = expected + tensor.square().sum();
    }
    EXPECT_TRUE(close_to(norm, expected, 1e-12));
    for (size_t i = 0; i < others.size(); ++i) EXPECT_TRUE(close_to(others[i], exact[i], 1e-15));
  });
}

TEST(PowerSgd, GroupsAndScalesChangeNothing) {
  run_thread_ranks(2, [](ThreadRank& ranks) {
    PowerSgd whole(kMatrices, {.rank = 3}, 5, kF64), grouped(kMatrices, {.rank = 3}, 5, kF64);
    const auto gradients = shares(ranks.rank(), 0), expected = reduce(whole, gradients, ranks);
    const Tensor scale = at::scalar_tensor(8192.0f);
    for (size_t i = 0; i < kMatrices.size(); ++i) {
      grouped.add(i, gradients[i] * 4096, scale);  // in two halves, as micro-batches give them
      grouped.add(i, gradients[i] * 4096, scale);
    }
    for (const std::vector<size_t>& group : {std::vector<size_t>{2, 3}, {0, 1}}) grouped.reduce_factors(group, ranks);
    std::vector<Tensor> others;
    grouped.reduce_rest(others, ranks);
    for (size_t i = 0; i < kMatrices.size(); ++i) EXPECT_TRUE(close_to(grouped.decompress(i), expected[i], 1e-13)) << i;
  });
}

TEST(PowerSgd, DependsOnTheSeedAndTheNameAlone) {
  const auto alone = make_singleton();
  const auto first_update = [&](const std::vector<CompressedMatrix>& matrices, uint64_t seed) {
    PowerSgd powersgd(matrices, {.rank = 3}, seed, kF64);
    std::vector<Tensor> gradients, others;
    for (const auto& matrix : matrices) gradients.push_back(random_tensor(9, {matrix.rows, matrix.cols}).to(kF64));
    Tensor norm;
    return powersgd.reduce(gradients, others, *alone, norm);
  };
  const auto both = first_update({{"a", 6, 8}, {"b", 6, 8}}, 1), swapped = first_update({{"b", 6, 8}, {"a", 6, 8}}, 1);
  EXPECT_TRUE(testing::bitwise_equal(both[0], swapped[1]));
  EXPECT_FALSE(at::equal(both[0], both[1]));
  EXPECT_FALSE(at::equal(both[0], first_update({{"a", 6, 8}}, 2)[0]));
}

TEST(PowerSgd, TheColumnsAreOrthonormalWhateverTheirRank) {
  const Tensor identity = at::eye(5, kF64), full = random_tensor(3, {20, 5}).to(kF64);
  Tensor dependent = full.clone();
  dependent.select(1, 3).copy_(dependent.select(1, 1) * 2);
  for (const Tensor& p : {full, dependent, at::zeros({20, 5}, kF64), full * 1e-200, at::ones({20, 5}, kF64),
                          dependent + 1e-6 * at::eye(20, 5, kF64)}) {
    const Tensor q = orthonormal_columns(p);
    EXPECT_LT((at::mm(q.t(), q) - identity).abs().max().item<double>(), 1e-14);
    EXPECT_LT((p - at::mm(q, at::mm(q.t(), p))).abs().max().item<double>(), 1e-13 * (1 + p.abs().max().item<double>()));
  }
  // LAPACK bounds what rounding makes of Q^T Q - I by the number of reflections times the precision; how much of it there is
  // differs between processors.
  const Tensor single = orthonormal_columns(at::ones({300, 200}, kF32)).to(kF64);
  EXPECT_LT((at::mm(single.t(), single) - at::eye(200, kF64)).abs().max().item<double>(), 200 * 0x1p-23);
}

TEST(PowerSgd, ZeroAndRankOneGradientsAreSentWhole) {
  run_thread_ranks(2, [](ThreadRank& ranks) {
    const std::vector<CompressedMatrix> matrices{{"a", 20, 30}};
    PowerSgd powersgd(matrices, {.rank = 4}, 5, kF64);
    const Tensor zero = at::zeros({20, 30}, kF64);
    EXPECT_EQ(reduce(powersgd, {zero}, ranks)[0].abs().max().item<double>(), 0);
    const Tensor outer = at::outer(random_tensor(1, {20}), random_tensor(2, {30})).to(kF64);
    // 1e-6 I turns the columns by about its size over theirs.
    EXPECT_TRUE(close_to(reduce(powersgd, {outer}, ranks)[0], 2 * outer, 1e-7));
  });
}

// ------------------------------------------------------------------------------------------ numbers that are not finite

constexpr size_t kWide = 0, kTall = 1;

TEST(PowerSgd, AGradientThatIsNotFiniteIsLeftOutAndTheNormIsInfinite) {
  for (const float bad : {INFINITY, -INFINITY, NAN}) {
    run_thread_ranks(2, [bad](ThreadRank& ranks) {
      PowerSgd powersgd(kMatrices, {.rank = 3}, 5, kF64);
      reduce(powersgd, shares(ranks.rank(), 0), ranks);
      auto gradients = shares(ranks.rank(), 1);
      if (ranks.rank() == 1) gradients[kTall][2][3] = bad;
      const auto before = summed(errors(powersgd), ranks);
      auto added = shares(ranks.rank(), 1);
      if (ranks.rank() == 1) added[kTall].zero_();  // the whole share is left out
      added = summed(added, ranks);
      std::vector<Tensor> others;
      Tensor norm;
      const auto sent = powersgd.reduce(gradients, others, ranks, norm);
      EXPECT_TRUE(std::isinf(norm.item<double>()));
      const auto after = summed(errors(powersgd), ranks);
      for (size_t i = 0; i < kMatrices.size(); ++i) {
        EXPECT_TRUE(close_to(after[i] + sent[i], before[i] + added[i], 1e-12)) << kMatrices[i].name;
      }
      powersgd.reduce(shares(ranks.rank(), 2), others, ranks, norm);  // and the flag is gone
      EXPECT_TRUE(std::isfinite(norm.item<double>()));
    });
  }
}

TEST(PowerSgd, WhereOneRanksErrorIsNotFiniteItIsZeroedAndTheOthersKeepTheirs) {
  run_thread_ranks(3, [](ThreadRank& ranks) {
    const bool is_bad = ranks.rank() == 1;
    PowerSgd powersgd(kMatrices, {.rank = 3}, 5, kF64);
    auto sums = powersgd.error_sums(ranks);
    for (size_t i = 0; i < sums.size(); ++i) sums[i] = share(i, ranks.rank(), 7);
    if (is_bad) sums[kWide][3][5] = INFINITY;
    powersgd.load_error_sums(sums, 1);  // each rank its own
    std::vector<Tensor> others, before = errors(powersgd);
    const auto zeros = [&] {
      std::vector<Tensor> out;
      for (const auto& matrix : kMatrices) out.push_back(at::zeros({matrix.rows, matrix.cols}, kF64));
      return out;
    };
    Tensor norm;
    const auto sent = powersgd.reduce(zeros(), others, ranks, norm);
    EXPECT_TRUE(std::isinf(norm.item<double>()));
    if (is_bad) {
      EXPECT_EQ(powersgd.error(kWide).abs().max().item<double>(), 0);
    } else {
      EXPECT_TRUE(testing::bitwise_equal(powersgd.error(kWide), before[kWide]));
    }
    // The other matrices' factors were finite.
    EXPECT_TRUE(close_to(powersgd.error(kTall), before[kTall] - sent[kTall] / 3, 1e-13));
    powersgd.reduce(shares(ranks.rank(), 2), others, ranks, norm);
    EXPECT_TRUE(std::isfinite(norm.item<double>()));
  });
}

TEST(PowerSgd, WhereFactorsOverflowFiniteErrorsAreKept) {
  run_thread_ranks(2, [](ThreadRank& ranks) {
    PowerSgd powersgd(kMatrices, {.rank = 3}, 5, kF32);
    auto gradients = shares(ranks.rank(), 0, kF32);
    gradients[kWide] = gradients[kWide] * 1e37f * 1e3f;  // finite, but E Q0 is not
    const Tensor kept = gradients[kWide].clone();
    ASSERT_TRUE(kept.isfinite().all().item<bool>());
    std::vector<Tensor> others;
    Tensor norm;
    powersgd.reduce(gradients, others, ranks, norm);
    EXPECT_TRUE(std::isinf(norm.item<double>()));
    EXPECT_TRUE(testing::bitwise_equal(powersgd.error(kWide), kept));
  });
}

TEST(PowerSgd, AnUncompressedGradientThatIsNotFiniteMakesTheNormInfinite) {
  run_thread_ranks(2, [](ThreadRank& ranks) {
    PowerSgd powersgd(kMatrices, {.rank = 3}, 5, kF32);
    std::vector<Tensor> others{at::full({3}, ranks.rank() == 0 ? NAN : 1.0f)};
    Tensor norm;
    powersgd.reduce(shares(ranks.rank(), 0, kF32), others, ranks, norm);
    EXPECT_TRUE(std::isinf(norm.item<double>()));
  });
}

// ------------------------------------------------------------------------------------------------------ 16-bit formats

constexpr PowerSgdConfig kSmall{.rank = 4, .error_buffers = ErrorFormat::kF16, .factors = ErrorFormat::kF16};

TEST(PowerSgd, SixteenBitFormatsStayWithinTheirRounding) {
  run_thread_ranks(3, [](ThreadRank& ranks) {
    PowerSgd powersgd(kMatrices, kSmall, 5, kF32);
    for (int step = 0; step < 5; ++step) {
      const auto gradients = shares(ranks.rank(), step, kF32);
      const auto before = summed(errors(powersgd), ranks), added = summed(gradients, ranks);
      const auto sent = reduce(powersgd, gradients, ranks);
      const auto after = summed(errors(powersgd), ranks);
      for (size_t i = 0; i < kMatrices.size(); ++i) {
        // Each rank rounds its buffer twice, by 2^-10 of it at most; the rounding of factors is in the error itself.
        const double largest = summed({(before[i].abs() + added[i].abs())}, ranks)[0].max().item<double>();
        const double difference = (after[i] + sent[i] - before[i] - added[i]).abs().max().item<double>();
        EXPECT_LT(difference, 6 * 0x1p-10 * largest) << kMatrices[i].name;
        EXPECT_GT(difference, 0) << kMatrices[i].name;
      }
    }
    EXPECT_LT(powersgd.state_bytes(), PowerSgd(kMatrices, {.rank = 4}, 5, kF32).state_bytes());
  });
}

TEST(PowerSgd, EveryRankTakesTheSameUpdate) {
  for (const ErrorFormat format : {ErrorFormat::kF32, ErrorFormat::kF16}) {
    run_thread_ranks(3, [format](ThreadRank& ranks) {
      PowerSgd powersgd(kMatrices, {.rank = 3, .error_buffers = format, .factors = format}, 5, kF32);
      for (int step = 0; step < 3; ++step) {
        for (const Tensor& sent : reduce(powersgd, shares(ranks.rank(), step, kF32), ranks)) {
          Tensor first = sent.contiguous().clone();
          ranks.broadcast(first, 0);
          EXPECT_TRUE(testing::bitwise_equal(sent, first));
        }
      }
    });
  }
}

TEST(PowerSgd, LargeFactorsAreClampedAndDivisorsKeepThemInRange) {
  run_thread_ranks(2, [](ThreadRank& ranks) {
    const std::vector<CompressedMatrix> matrices{{"a", 16, 24}};
    const Tensor gradient = random_tensor(1 + static_cast<uint64_t>(ranks.rank()), {16, 24});  // P and Q above 16
    const auto error_of = [&](const PowerSgdConfig& config) {
      PowerSgd powersgd(matrices, config, 5, kF32);
      std::vector<Tensor> others;
      Tensor norm;
      const Tensor sent = powersgd.reduce({gradient * 10}, others, ranks, norm)[0];
      EXPECT_TRUE(std::isfinite(norm.item<double>()));
      EXPECT_TRUE(sent.isfinite().all().item<bool>());
      const Tensor exact = summed({gradient * 10}, ranks)[0];
      return ((sent - exact).norm() / exact.norm()).item<double>();
    };
    PowerSgdConfig full = kSmall;
    full.rank = 16;
    full.error_buffers = ErrorFormat::kF32;
    EXPECT_GT(error_of(full), 0.1);  // clamped to 15.98
    full.p_divisor = full.q_divisor = 64;
    EXPECT_LT(error_of(full), 0x1p-9);
  });
}

TEST(PowerSgd, AnErrorBufferThatOverflowsItsFormatIsZeroed) {
  const auto alone = make_singleton();
  PowerSgd powersgd(kMatrices, {.rank = 3, .error_buffers = ErrorFormat::kF16}, 5, kF32);
  auto gradients = shares(0, 0, kF32);
  gradients[kWide][0][0] = 17;
  std::vector<Tensor> others;
  Tensor norm;
  powersgd.reduce(gradients, others, *alone, norm);
  EXPECT_TRUE(std::isinf(norm.item<double>()));
  EXPECT_EQ(powersgd.error(kWide).abs().max().item<float>(), 0);
  EXPECT_GT(powersgd.error(kTall).abs().max().item<float>(), 0);
}

// ------------------------------------------------------------------------------------------------------ rates and state

/// What one GPU of `shards` holds of a transformer layer (table 2).
std::vector<CompressedMatrix> layer_shards(int64_t d, int64_t shards) {
  std::vector<CompressedMatrix> matrices;
  for (const char* name : {"q", "k", "v", "post"}) matrices.push_back({name, d, d / shards});
  matrices.push_back({"mlp1", d, 4 * d / shards});
  matrices.push_back({"mlp2", 4 * d / shards, d});
  return matrices;
}

TEST(PowerSgd, RatesAreThoseOfTableOne) {
  for (const auto& [d, rank, percent] :
       {std::tuple<int64_t, int64_t, double>{1920, 512, 83.3}, {2688, 640, 85.1}, {3968, 896, 85.9}}) {
    const auto matrices = layer_shards(d, 8);
    const double rate = compression_rate(matrices, rank / 8);
    EXPECT_DOUBLE_EQ(rate, 1 - 5.0 * static_cast<double>(rank) / (8.0 * static_cast<double>(d)));
    EXPECT_NEAR(100 * rate, percent, 0.05);
  }
  int64_t gradients = 0, factors = 0;
  for (const auto& matrix : layer_shards(3968, 8)) {
    gradients += matrix.elements();
    factors += matrix.factor_elements(112);
  }
  EXPECT_EQ(gradients, 23'617'536);
  EXPECT_EQ(factors, 3'333'120);
}

TEST(PowerSgd, WhatIsSentIsWhatTheRateSays) {
  run_thread_ranks(2, [](ThreadRank& ranks) {
    const auto matrices = layer_shards(64, 8);
    int64_t elements = 0, factors = 0;
    std::vector<Tensor> gradients, others{at::zeros({10})};
    for (const auto& matrix : matrices) {
      elements += matrix.elements();
      factors += matrix.factor_elements(2);
      gradients.push_back(random_tensor(stable_hash(matrix.name), {matrix.rows, matrix.cols}));
    }
    Tensor norm;
    PowerSgd exact(matrices, {.rank = 2}, 5, kF32), small(matrices, {.rank = 2, .factors = ErrorFormat::kF16}, 5, kF32);
    exact.reduce(gradients, others, ranks, norm);
    EXPECT_EQ(ranks.calls, 3);  // P, Q, and the rest
    const auto flags = static_cast<int64_t>(2 * matrices.size());
    EXPECT_EQ(ranks.reduced_elements, factors + 10 + flags);
    EXPECT_DOUBLE_EQ(compression_rate(matrices, 2), 1 - static_cast<double>(factors) / static_cast<double>(elements));
    small.reduce(gradients, others, ranks, norm);
    EXPECT_EQ(ranks.gathered_bytes, 2 * factors);
  });
}

TEST(PowerSgd, StateGoesOverToAnotherNumberOfRanks) {
  std::vector<Tensor> saved, expected;
  std::mutex mutex;
  run_thread_ranks(2, [&](ThreadRank& ranks) {
    PowerSgd powersgd(kMatrices, {.rank = 3}, 5, kF64);
    for (int step = 0; step < 3; ++step) reduce(powersgd, shares(ranks.rank(), step), ranks);
    const auto sums = powersgd.error_sums(ranks);
    const auto sent = reduce(powersgd, shares(ranks.rank(), 3), ranks);
    const std::lock_guard lock(mutex);
    if (ranks.rank() == 0) saved = sums, expected = sent;
  });
  for (size_t i = 0; i < saved.size(); ++i) {
    EXPECT_EQ(saved[i].sizes(), at::IntArrayRef({kMatrices[i].rows, kMatrices[i].cols}));
    if (kMatrices[i].name == "thin") continue;  // rank 1 holds it whole
    EXPECT_GT(saved[i].abs().max().item<double>(), 1e-3);
  }
  for (const int size : {1, 2, 3}) {
    run_thread_ranks(size, [&](ThreadRank& ranks) {
      PowerSgd powersgd(kMatrices, {.rank = 3}, 5, kF64);
      powersgd.load_error_sums(saved, size);
      std::vector<Tensor> gradients;  // the same global gradient, given by the last rank
      for (size_t i = 0; i < kMatrices.size(); ++i) {
        const Tensor whole = share(i, 0, 3) + share(i, 1, 3);
        gradients.push_back(ranks.rank() == size - 1 ? whole : at::zeros_like(whole));
      }
      const auto sent = reduce(powersgd, gradients, ranks);
      for (size_t i = 0; i < sent.size(); ++i) EXPECT_TRUE(close_to(sent[i], expected[i], 1e-12)) << size << " " << i;
    });
  }
}

TEST(PowerSgd, WhatDoesNotFitIsRefused) {
  PowerSgd powersgd(kMatrices, {.rank = 3}, 5, kF64);
  EXPECT_THROW(powersgd.add(0, at::zeros({40, 12})), c10::ValueError);
  EXPECT_THROW(PowerSgd({{"a", 2, 3}, {"a", 2, 3}}, {}, 1, kF32), c10::ValueError);
  EXPECT_THROW(PowerSgd({{"a", 0, 3}}, {}, 1, kF32), c10::ValueError);
  EXPECT_THROW(PowerSgd(kMatrices, {.rank = 0}, 1, kF32), c10::ValueError);
  EXPECT_THROW(PowerSgd(kMatrices, {}, 1, at::TensorOptions(at::kHalf)), c10::ValueError);
  auto sums = errors(powersgd);
  sums[1] = sums[1].t();
  const auto message = testing::message_of<CheckpointError>([&] { powersgd.load_error_sums(sums, 2); });
  EXPECT_NE(message.find("'tall' of shape [48, 8], got [8, 48]"), std::string::npos) << message;
  sums.pop_back();
  EXPECT_THROW(powersgd.load_error_sums(sums, 2), CheckpointError);
}

TEST(PowerSgd, ConfigReadsItsFormats) {
  const auto config = config::load_config<PowerSgdConfig>(config::parse_yaml("rank: 8\nerror_buffers: f16", "x.yaml"));
  EXPECT_EQ(config.rank, 8);
  EXPECT_EQ(config.error_buffers, ErrorFormat::kF16);
  EXPECT_EQ(config.factors, ErrorFormat::kF32);
  EXPECT_THROW(config::load_config<PowerSgdConfig>(config::parse_yaml("rank: 0", "x.yaml")), ConfigError);
}

}  // namespace
}  // namespace dalle::distributed
