// ctest: slow
// A training with compressed gradients does not depend on the number of ranks; its error buffers go with a checkpoint.
#include <ATen/ATen.h>

#include "integration/run_values.h"

namespace dalle::integration {
namespace {

using ::testing::HasSubstr;

struct Layout {
  int ranks = 1;
  int micro_batch_size = 0;
  int group_size = 0;  // of sharding hybrid; 0 = none
};

/// A tiny run in f64 whose blocks' matrices are sent as factors of rank 4, in two shards.
std::string compressed_yaml(const std::string& kind, int64_t num_steps) {
  std::string yaml = spread_yaml(kind, num_steps);
  yaml.replace(yaml.find("precision: f32"), 14,
               "  gradient_compression:\n    enabled: true\n    rank: 4\nprecision: f64");
  return yaml;
}

std::vector<std::string> with(std::vector<std::string> arguments, const Layout& layout, int num_shards) {
  const auto set = [&](const std::string& key, auto value) {
    arguments.insert(arguments.end(), {"--set", str(key, "=", value)});
  };
  set("trainer.micro_batch_size", layout.micro_batch_size);
  set("trainer.gradient_compression.num_shards", num_shards);
  if (layout.group_size > 0) {
    set("trainer.sharding", "hybrid");
    set("trainer.shard_group_size", layout.group_size);
  }
  return arguments;
}

fs::path train_in(const Workplace& place, const std::string& kind, const std::string& run, const Layout& layout,
                  int num_shards, const std::vector<std::string>& arguments) {
  const auto outcomes = train_on_ranks(place, layout.ranks, kind, run, with(arguments, layout, num_shards));
  expect_all_ended_with(outcomes, 0);
  EXPECT_THAT(outcomes[0].err, HasSubstr("PowerSGD of rank 4"));
  return place / run;
}

// Every value; but of CLIP's training the losses alone: the norms of gradients that nearly cancel (its temperature's) carry the
// rounding of the factors' orthogonalisation, relative to what cancels.
void expect_same_run(const std::string& kind, const fs::path& actual, const fs::path& expected) {
  expect_same_values(actual, expected, "validation", 1e-10);
  if (kind == "clip") {
    expect_same_losses(actual, expected, 1e-10);
  } else {
    expect_same_values(actual, expected, "train", 1e-10);
  }
}

std::vector<storage::NamedTensor> optimizer_of(const fs::path& run) {
  return storage::load_checkpoint(run / "checkpoints/latest").optimizer;
}

TEST(Compression, LossesAreThoseOfOneProcess) {
  const Parts place("compression");
  for (const std::string kind : {"prior", "dvae", "clip"}) {
    const std::string config = place.file(kind + ".yaml", compressed_yaml(kind, 20));
    const int num_shards = kind == "prior" ? 2 : 1;
    const fs::path alone = train_in(place, kind, kind + "-alone", {1}, num_shards, {config});
    for (const Layout& layout : {Layout{1, 2}, Layout{2, 2}, Layout{4, 0}}) {
      const std::string run = str(kind, "-", layout.ranks, "-", layout.micro_batch_size);
      expect_same_run(kind, train_in(place, kind, run, layout, num_shards, {config}), alone);
      EXPECT_LT(largest_difference(optimizer_of(place / run), optimizer_of(alone)), 1e-9) << run;
    }
    EXPECT_EQ(largest_difference(optimizer_of(alone), optimizer_of(alone)), 0);
  }
  // Compression is not without effect.
  train_on_ranks(place, 1, "prior", "plain",
                 {place.at("prior.yaml"), "--set", "trainer.gradient_compression.enabled=false"});
  const auto plain = values_of(place / "plain", "train"), compressed = values_of(place / "prior-alone", "train");
  EXPECT_EQ(plain[0].at("loss"), compressed[0].at("loss"));
  EXPECT_GT(std::abs(plain[19].at("loss") - compressed[19].at("loss")), 1e-4);
}

TEST(Compression, ReplicasOfGroupsAreAsOneGroup) {
  const Parts place("compression-groups");
  for (const std::string kind : {"prior", "dvae", "clip"}) {
    const std::string config = place.file(kind + ".yaml", compressed_yaml(kind, 20));
    const fs::path one = train_in(place, kind, kind + "-one", {2, 0, 2}, 1, {config});
    // Two ranks' parts of a matrix are its two shards. (A kernel's columns are in another order.)
    if (kind == "prior") expect_same_run(kind, one, train_in(place, kind, kind + "-whole", {1}, 2, {config}));
    for (const Layout& layout : {Layout{4, 0, 2}, Layout{4, 1, 2}}) {
      const std::string run = str(kind, "-", layout.ranks, "-", layout.micro_batch_size);
      expect_same_run(kind, train_in(place, kind, run, layout, 1, {config}), one);
      EXPECT_LT(largest_difference(optimizer_of(place / run), optimizer_of(one)), 1e-9) << run;
    }
  }
}

/// Error buffers are saved as their sums: a run goes on with another number of ranks as if nothing had been.
TEST(Compression, ARunGoesOnWithAnotherNumberOfRanks) {
  const Parts place("compression-resume");
  const std::string config = place.file("prior.yaml", compressed_yaml("prior", 16));
  const fs::path alone = train_in(place, "prior", "alone", {1}, 2, {config});
  train_in(place, "prior", "moved", {4}, 2, {config, "--set", "trainer.num_steps=5"});
  train_in(place, "prior", "moved", {1}, 2, {"--resume", "--set", "trainer.num_steps=11"});
  expect_same_values(train_in(place, "prior", "moved", {2}, 2, {"--resume", "--set", "trainer.num_steps=16"}), alone,
                     "train", 1e-10);
  EXPECT_LT(largest_difference(optimizer_of(place / "moved"), optimizer_of(alone)), 1e-9);

  const fs::path groups = train_in(place, "prior", "groups", {4, 0, 2}, 1, {config});
  train_in(place, "prior", "moved-groups", {2, 0, 2}, 1, {config, "--set", "trainer.num_steps=5"});
  train_in(place, "prior", "moved-groups", {4, 0, 2}, 1, {"--resume", "--set", "trainer.num_steps=16"});
  expect_same_values(place / "moved-groups", groups, "train", 1e-10);
}

/// Sums of error buffers have the shapes of parameters, whatever the layout: what one leaves over another sends.
TEST(Compression, ErrorBuffersGoOverToAnotherLayout) {
  const Parts place("compression-layouts");
  const std::string config = place.file("prior.yaml", compressed_yaml("prior", 6));
  const auto buffers = [&](const fs::path& run) {
    std::map<std::string, Tensor> found;
    for (const auto& [name, tensor] : storage::load_checkpoint(run / "checkpoints/latest").optimizer) {
      if (name.starts_with("powersgd.")) found[name] = tensor;
    }
    return found;
  };
  const auto before = buffers(train_in(place, "prior", "run", {1}, 1, {config}));
  EXPECT_EQ(before.size(), 16u);  // four matrices of four layers
  for (const Layout& layout : {Layout{4, 0, 2}, Layout{2}, Layout{2, 0, 2}}) {
    std::vector<std::string> arguments{"--resume", "--set", str("trainer.num_steps=", 7 + layout.ranks)};
    if (layout.group_size == 0) arguments.insert(arguments.end(), {"--set", "trainer.sharding=none"});
    fs::remove_all(place / "again");
    fs::copy(place / "run", place / "again", fs::copy_options::recursive | fs::copy_options::copy_symlinks);
    train_in(place, "prior", "again", layout, 1, arguments);
    const auto after = buffers(place / "again");
    ASSERT_EQ(after.size(), before.size());
    for (const auto& [name, tensor] : after) {
      ASSERT_EQ(tensor.sizes(), before.at(name).sizes()) << name;
      EXPECT_GT(tensor.abs().max().item<double>(), 0) << name;
    }
  }
}

TEST(Compression, NeedsReplicas) {
  const Parts place("compression-refused");
  const std::string config = place.file("prior.yaml", compressed_yaml("prior", 4));
  for (const std::string sharding : {"full", "optimizer"}) {
    const auto outcomes = train_on_ranks(place, 2, "prior", "run", {config, "--set", "trainer.sharding=" + sharding});
    expect_all_ended_with(outcomes, 2);
    EXPECT_THAT(outcomes[0].err, HasSubstr("sharding none or hybrid with gradient_compression, got " + sharding));
  }
  const auto outcomes =
      train_on_ranks(place, 1, "prior", "run", {config, "--set", "trainer.gradient_compression.num_shards=3"});
  expect_all_ended_with(outcomes, 2);
  EXPECT_THAT(outcomes[0].err, HasSubstr("a rank that num_shards 3 divides, got rank 4"));
}

}  // namespace
}  // namespace dalle::integration
