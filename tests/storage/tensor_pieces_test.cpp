#include "dalle/storage/tensor_pieces.h"

#include <ATen/ATen.h>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/storage/checkpoint.h"
#include "dalle/storage/identity.h"
#include "dalle/storage/run_checkpoints.h"
#include "storage/scratch.h"

namespace dalle::storage {
namespace {

/// A matrix, a kernel in the order of NHWC memory, a count and a moment in 16 bits, cut between three ranks.
struct Model {
  Tensor matrix = at::rand({5, 7}), kernel = at::rand({4, 3, 2, 2}), count = at::full({}, 9, at::kLong);
  Tensor small = at::arange(30, at::kShort).view({5, 6});

  std::vector<TensorPiece> pieces(int64_t rank) const {
    std::vector<TensorPiece> pieces;
    const auto cut = [&](const char* name, const Tensor& tensor, const Tensor& flat, bool channels_last) {
      const int64_t begin = flat.numel() * rank / 3, end = flat.numel() * (rank + 1) / 3;
      pieces.push_back({name, tensor.sizes().vec(), begin, channels_last, flat.slice(0, begin, end)});
    };
    cut("matrix", matrix, matrix.flatten(), false);
    cut("small", small, small.flatten(), false);
    cut("kernel", kernel, kernel.permute({0, 2, 3, 1}).flatten(), true);
    if (rank == 1) pieces.push_back({"count", {}, 0, false, count.view({1})});
    return pieces;
  }
};

Manifest written(const fs::path& folder, const Model& model, const std::vector<int64_t>& ranks) {
  fs::create_directories(folder);
  Manifest manifest;
  for (const int64_t rank : ranks) {
    const std::string name = part_file_name("model", rank, 3);
    write_pieces(folder / name, model.pieces(rank));
    manifest.files.push_back(measure_file(folder, name));
  }
  return manifest;
}

TEST(TensorPieces, WholeTensorsAndRangesAreWhatWasCut) {
  const Scratch scratch("pieces-round");
  const Model model;
  const TensorFiles files(scratch / "c", written(scratch / "c", model, {0, 1, 2}), "model");
  EXPECT_EQ(files.names(), (std::vector<std::string>{"count", "kernel", "matrix", "small"}));
  EXPECT_TRUE(at::equal(files.read("matrix"), model.matrix));
  EXPECT_TRUE(at::equal(files.read("small"), model.small));
  EXPECT_TRUE(at::equal(files.read("kernel"), model.kernel));
  EXPECT_TRUE(files.read("kernel").is_contiguous());
  EXPECT_TRUE(at::equal(files.read("count"), model.count));
  EXPECT_TRUE(at::equal(files.read_range("matrix", 3, 30), model.matrix.flatten().slice(0, 3, 30)));
  EXPECT_EQ(files.read_range("matrix", 11, 11).numel(), 0);
  const Tensor nhwc = model.kernel.permute({0, 2, 3, 1}).flatten();
  EXPECT_TRUE(at::equal(files.read_range("kernel", 5, 40, /*channels_last=*/true), nhwc.slice(0, 5, 40)));
  EXPECT_TRUE(at::equal(files.read_range("kernel", 5, 40), model.kernel.flatten().slice(0, 5, 40)));
  EXPECT_EQ(files.shape("nothing"), nullptr);
  EXPECT_THROW(files.read("nothing"), CheckpointError);
}

TEST(TensorPieces, AFileOfWholeTensorsIsReadTheSameWay) {
  const Scratch scratch("pieces-whole");
  const Model model;
  save_checkpoint(scratch / "c", {.kind = "prior", .model = {{"matrix", model.matrix}, {"kernel", model.kernel}}});
  const TensorFiles files = checkpoint_tensors(scratch / "c", "model");
  EXPECT_TRUE(at::equal(files.read("matrix"), model.matrix));
  EXPECT_TRUE(
      at::equal(files.read_range("kernel", 1, 9, true), model.kernel.permute({0, 2, 3, 1}).flatten().slice(0, 1, 9)));
  EXPECT_TRUE(checkpoint_tensors(scratch / "c", "ema").empty());
}

TEST(TensorPieces, MissingAndDisagreeingPiecesAreRefused) {
  const Scratch scratch("pieces-bad");
  const Model model;
  EXPECT_THROW(TensorFiles(scratch / "a", written(scratch / "a", model, {0, 2}), "model"), CheckpointError);
  // A part under the name of another: numbers twice, and others not at all.
  Manifest manifest = written(scratch / "b", model, {0, 1, 2});
  fs::copy_file(scratch / "b" / part_file_name("model", 0, 3), scratch / "b" / part_file_name("model", 1, 3),
                fs::copy_options::overwrite_existing);
  EXPECT_THROW(TensorFiles(scratch / "b", manifest, "model"), CheckpointError);
  const TensorPiece odd{"matrix", {5, 8}, 12, false, at::rand({11})};
  write_pieces(scratch / "b" / part_file_name("model", 1, 3), {odd});
  EXPECT_THROW(TensorFiles(scratch / "b", manifest, "model"), CheckpointError);
  for (const int64_t begin : {int64_t{-1}, int64_t{1} << 62}) {
    write_pieces(scratch / "b" / part_file_name("model", 1, 3), {{"matrix", {5, 7}, begin, false, at::rand({11})}});
    EXPECT_THROW(TensorFiles(scratch / "b", manifest, "model"), CheckpointError);
  }
}

// --------------------------------------------------------------------------------------------- checkpoints of several ranks

Checkpoint texts() { return {.kind = "prior", .config_yaml = "a: 1\n", .model_config_yaml = "dim: 7\n", .step = 3}; }

TEST(CheckpointParts, AreACheckpointOnceFinished) {
  const Scratch scratch("parts-finish");
  const Model model;
  const fs::path run = scratch.path(), place = checkpoint_path(run, 3);
  fs::create_directories(run / "checkpoints");
  const fs::path begun = begin_checkpoint(place);
  std::vector<ManifestEntry> files;
  for (int64_t rank = 0; rank < 3; ++rank) {
    const auto own = write_part(begun, {.number = rank, .num_parts = 3, .model = model.pieces(rank)});
    const auto sent = parse_manifest_text(manifest_text(own), "rank");
    files.insert(files.end(), sent.begin(), sent.end());
    EXPECT_TRUE(list_checkpoints(run).empty()) << "nothing is there before all parts are";
  }
  finish_checkpoint(begun, place, texts(), files);
  EXPECT_FALSE(fs::exists(begun));
  EXPECT_NO_THROW(verify_checkpoint(place));
  const Checkpoint loaded = load_latest_good(run).checkpoint;
  EXPECT_EQ(loaded.step, 3);
  EXPECT_TRUE(at::equal(*find_tensor(loaded.model, "kernel"), model.kernel));
  Checkpoint whole = texts();
  whole.model = {{"count", model.count}, {"kernel", model.kernel}, {"matrix", model.matrix}, {"small", model.small}};
  EXPECT_EQ(loaded.identities.at("model"), model_identity(whole.model_config_yaml, whole.model))
      << "a model's identity does not depend on how it was written";
  EXPECT_TRUE(load_checkpoint(place, LoadParts::kTexts).model.empty());
}

TEST(CheckpointParts, ADamagedPartIsPassedOver) {
  const Scratch scratch("parts-damaged");
  const Model model;
  const fs::path run = scratch.path();
  fs::create_directories(run / "checkpoints");
  for (const int64_t step : {3, 4}) {
    const fs::path begun = begin_checkpoint(checkpoint_path(run, step));
    std::vector<ManifestEntry> files;
    for (int64_t rank = 0; rank < 3; ++rank) {
      for (auto& file : write_part(begun, {.number = rank, .num_parts = 3, .model = model.pieces(rank)})) {
        files.push_back(file);
      }
    }
    finish_checkpoint(begun, checkpoint_path(run, step), texts(), files);
  }
  const fs::path part = checkpoint_path(run, 4) / part_file_name("model", 1, 3);
  std::string bytes = read_file(part);
  bytes.back() ^= 1;
  write_file(part, bytes);
  EXPECT_EQ(latest_good_folder(run), checkpoint_path(run, 3));
  EXPECT_EQ(load_latest_good(run).folder, checkpoint_path(run, 3));
}

}  // namespace
}  // namespace dalle::storage
