// Features in parts and on several ranks give the loss and gradients of all features at once.
#include "dalle/training/contrastive_step.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <array>
#include <barrier>
#include <thread>

#include "dalle/models/clip.h"
#include "support/tensor_matchers.h"

namespace dalle::training {
namespace {

using testing::close_to;

constexpr int kRanks = 2;

/// Ranks as threads of one process.
struct Meeting {
  std::barrier<> barrier{kRanks};
  std::array<Tensor, kRanks> slots;
};

class ThreadRank : public distributed::Communicator {
 public:
  ThreadRank(Meeting& meeting, int rank) : meeting_(meeting), rank_(rank) {}
  int rank() const override { return rank_; }
  int world_size() const override { return kRanks; }
  Tensor all_gather(const Tensor& tensor) override {
    meeting_.slots[static_cast<size_t>(rank_)] = tensor;
    meeting_.barrier.arrive_and_wait();
    const Tensor all = at::cat({meeting_.slots[0], meeting_.slots[1]});
    meeting_.barrier.arrive_and_wait();
    return all;
  }
  void all_reduce_sum(Tensor&) override { throw std::logic_error("the loop's, not the loss's"); }
  void broadcast(Tensor&, int) override { throw std::logic_error("the loop's, not the loss's"); }
  void barrier() override { meeting_.barrier.arrive_and_wait(); }
  void await(int) override { throw std::logic_error("the loop's, not the loss's"); }

 private:
  Meeting& meeting_;
  int rank_;
};

/// Rows of inputs, and towers of one matrix each.
struct Pairs {
  Tensor pictures = at::randn({12, 5}), captions = at::randn({12, 5});
  Tensor image_tower = at::randn({5, 4}).requires_grad_(), text_tower = at::randn({5, 4}).requires_grad_();
  Tensor log_scale = at::full({}, 1.2).requires_grad_();

  static Tensor unit(const Tensor& x) { return x / x.norm(2, -1, true); }
  Tensor image(int64_t from, int64_t to) const { return unit(at::matmul(pictures.slice(0, from, to), image_tower)); }
  Tensor text(int64_t from, int64_t to) const { return unit(at::matmul(captions.slice(0, from, to), text_tower)); }
  Tensor scale() const { return log_scale.exp(); }

  struct Result {
    double loss = 0;
    Tensor image, text, scale;
  };
  Result result(double loss) const {
    return {loss, image_tower.grad().clone(), text_tower.grad().clone(), log_scale.grad().clone()};
  }
};

Pairs seeded() {
  at::manual_seed(7);
  return {};
}

Pairs::Result whole() {
  const Pairs pairs = seeded();
  const Tensor loss = models::contrastive_loss(pairs.image(0, 12), pairs.text(0, 12), pairs.scale());
  loss.backward();
  return pairs.result(loss.item<double>());
}

/// Micro-batches [bounds[i], bounds[i + 1]) of this rank; by caching even where it is one.
Pairs::Result in_parts(const Pairs& pairs, const std::vector<int64_t>& bounds,
                       distributed::Communicator& communicator) {
  std::vector<Tensor> images, texts;
  for (size_t i = 0; i + 1 < bounds.size(); ++i) {
    images.push_back(pairs.image(bounds[i], bounds[i + 1]).detach());
    texts.push_back(pairs.text(bounds[i], bounds[i + 1]).detach());
  }
  const ContrastiveStep step(images, texts, pairs.scale(), communicator);
  double sum = 0;
  for (size_t i = 0; i < images.size(); ++i) {
    const Tensor share =
        step.share(i, pairs.image(bounds[i], bounds[i + 1]), pairs.text(bounds[i], bounds[i + 1]), pairs.scale());
    share.backward();
    sum += share.item<double>();
  }
  return pairs.result(sum);
}

void expect_same(const Pairs::Result& result, const Pairs::Result& expected) {
  EXPECT_NEAR(result.loss, expected.loss, 1e-5);
  EXPECT_TRUE(close_to(result.image, expected.image, 1e-5));
  EXPECT_TRUE(close_to(result.text, expected.text, 1e-5));
  EXPECT_TRUE(close_to(result.scale, expected.scale, 1e-5));
}

/// In one pass without caching: this rank's rows [from, to).
Pairs::Result in_one_pass(const Pairs& pairs, int64_t from, int64_t to, distributed::Communicator& communicator) {
  const Tensor share = contrastive_share(pairs.image(from, to), pairs.text(from, to), pairs.scale(), communicator);
  share.backward();
  return pairs.result(share.item<double>());
}

/// Sums of what the ranks' threads give, as the loop sums them.
template <class Run>
Pairs::Result summed_over_ranks(Run run) {
  Meeting meeting;
  std::array<Pairs, kRanks> pairs{seeded(), seeded()};
  std::array<Pairs::Result, kRanks> results;
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < kRanks; ++rank) {
    threads.emplace_back([&, rank] {
      ThreadRank communicator(meeting, static_cast<int>(rank));
      results[rank] = run(pairs[rank], static_cast<int64_t>(6 * rank), communicator);
    });
  }
  for (auto& thread : threads) thread.join();
  return {results[0].loss + results[1].loss, results[0].image + results[1].image, results[0].text + results[1].text,
          results[0].scale + results[1].scale};
}

TEST(ContrastiveStep, MicroBatchesAddUp) {
  const auto alone = distributed::make_singleton();
  const auto expected = whole();
  expect_same(in_parts(seeded(), {0, 12}, *alone), expected);
  expect_same(in_parts(seeded(), {0, 4, 8, 12}, *alone), expected);
  expect_same(in_parts(seeded(), {0, 1, 7, 12}, *alone), expected);
}

TEST(ContrastiveStep, RanksAddUp) {
  expect_same(summed_over_ranks([](const Pairs& pairs, int64_t from, auto& communicator) {
                return in_one_pass(pairs, from, from + 6, communicator);
              }),
              whole());
}

TEST(ContrastiveStep, MicroBatchesOfRanksAddUp) {
  expect_same(summed_over_ranks([](const Pairs& pairs, int64_t from, auto& communicator) {
                return in_parts(pairs, {from, from + 2, from + 6}, communicator);
              }),
              whole());
}

TEST(ContrastiveStep, ComparingWithinMicroBatchesWouldBeAnotherLoss) {
  const Pairs pairs = seeded();
  double within = 0;
  for (int64_t i = 0; i < 12; i += 4) {
    within += models::contrastive_loss(pairs.image(i, i + 4), pairs.text(i, i + 4), pairs.scale()).item<double>() / 3;
  }
  EXPECT_GT(std::abs(within - whole().loss), 0.1);
}

}  // namespace
}  // namespace dalle::training
