#include "dalle/storage/tensor_pieces.h"

#include <ATen/ATen.h>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/str.h"
#include "dalle/storage/checkpoint.h"
#include "dalle/storage/identity.h"
#include "dalle/storage/run_checkpoints.h"
#include "dalle/storage/safetensors.h"
#include "storage/scratch.h"

namespace dalle::storage {
namespace {

const DimensionOrder kNhwc{0, 2, 3, 1}, kTransposed{1, 0};

/// A matrix, a kernel in the order of NHWC memory, a count, a moment in 16 bits, a matrix that lies transposed and one
/// that is cut in two halves, each for itself: between three ranks.
struct Model {
  Tensor matrix = at::rand({5, 7}), kernel = at::rand({4, 3, 2, 2}), count = at::full({}, 9, at::kLong);
  Tensor turned = at::rand({5, 6}), halves = at::rand({12, 2});
  Tensor small = at::arange(30, at::kShort).view({5, 6});

  std::vector<TensorPiece> pieces(int64_t rank) const {
    std::vector<TensorPiece> pieces;
    const auto add = [&](const char* name, const Tensor& tensor, const std::vector<NumberRange>& ranges,
                         const DimensionOrder& order) {
      pieces.push_back({name, tensor.sizes().vec(), ranges, order, numbers_of(tensor, ranges, order)});
    };
    const auto cut = [&](const char* name, const Tensor& tensor, const DimensionOrder& order) {
      add(name, tensor, {{tensor.numel() * rank / 3, tensor.numel() * (rank + 1) / 3}}, order);
    };
    cut("matrix", matrix, {});
    cut("small", small, {});
    cut("kernel", kernel, kNhwc);
    cut("turned", turned, kTransposed);
    add("halves", halves, {{4 * rank, 4 * rank + 4}, {12 + 4 * rank, 16 + 4 * rank}}, {});
    if (rank == 1) pieces.push_back({"count", {}, {}, {}, count.view({1})});
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
  EXPECT_EQ(files.names(), (std::vector<std::string>{"count", "halves", "kernel", "matrix", "small", "turned"}));
  EXPECT_TRUE(at::equal(files.read("matrix"), model.matrix));
  EXPECT_TRUE(at::equal(files.read("small"), model.small));
  EXPECT_TRUE(at::equal(files.read("kernel"), model.kernel));
  EXPECT_TRUE(files.read("kernel").is_contiguous());
  EXPECT_TRUE(at::equal(files.read("count"), model.count));
  EXPECT_TRUE(at::equal(files.read("turned"), model.turned));
  EXPECT_TRUE(files.read("turned").is_contiguous());
  EXPECT_TRUE(at::equal(files.read("halves"), model.halves));
  EXPECT_TRUE(at::equal(files.read_ranges("matrix", {{3, 30}}), model.matrix.flatten().slice(0, 3, 30)));
  EXPECT_EQ(files.read_ranges("matrix", {{11, 11}}).numel(), 0);
  const Tensor nhwc = model.kernel.permute({0, 2, 3, 1}).flatten(), turned = model.turned.t().flatten();
  EXPECT_TRUE(at::equal(files.read_ranges("kernel", {{5, 40}}, kNhwc), nhwc.slice(0, 5, 40)));
  EXPECT_TRUE(at::equal(files.read_ranges("kernel", {{5, 40}}), model.kernel.flatten().slice(0, 5, 40)));
  EXPECT_TRUE(at::equal(files.read_ranges("turned", {{7, 28}}, kTransposed), turned.slice(0, 7, 28)));
  // Written in one order and cut in another, in several stretches.
  for (const char* name : {"turned", "halves", "matrix", "small"}) {
    for (const DimensionOrder& order : {DimensionOrder{}, DimensionOrder{0, 1}, kTransposed}) {
      const std::vector<NumberRange> ranges{{20, 23}, {0, 5}, {6, 17}};
      EXPECT_TRUE(at::equal(files.read_ranges(name, ranges, order), numbers_of(files.read(name), ranges, order)));
    }
  }
  EXPECT_THROW(files.read_ranges("matrix", {{0, 5}, {30, 36}}), c10::ValueError);
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
      at::equal(files.read_ranges("kernel", {{1, 9}}, kNhwc), model.kernel.permute(kNhwc).flatten().slice(0, 1, 9)));
  EXPECT_TRUE(checkpoint_tensors(scratch / "c", "ema").empty());
}

/// Parts with "begin" and "channels_last" in place of "ranges" and "order".
TEST(TensorPieces, PartsOfEarlierVersionsAreRead) {
  const Scratch scratch("pieces-old");
  const Model model;
  fs::create_directories(scratch / "c");
  Manifest manifest;
  for (const int64_t rank : {0, 1}) {
    const Tensor nhwc = model.kernel.permute(kNhwc).flatten(), rows = model.matrix.flatten();
    SafetensorsFile file{.tensors = {{"kernel", nhwc.slice(0, 20 * rank, rank == 0 ? 20 : 48)},
                                     {"matrix", rows.slice(0, 11 * rank, rank == 0 ? 11 : 35)}},
                         .metadata = {}};
    file.metadata["dalle.pieces"] =
        str(R"({"kernel": {"shape": [4, 3, 2, 2], "begin": )", 20 * rank, R"(, "channels_last": true}, )",
            R"("matrix": {"shape": [5, 7], "begin": )", 11 * rank, R"(, "channels_last": false}})");
    const std::string name = part_file_name("model", rank, 2);
    write_safetensors(scratch / "c" / name, file);
    manifest.files.push_back(measure_file(scratch / "c", name));
  }
  const TensorFiles files(scratch / "c", manifest, "model");
  EXPECT_TRUE(at::equal(files.read("kernel"), model.kernel));
  EXPECT_TRUE(at::equal(files.read("matrix"), model.matrix));
  EXPECT_TRUE(
      at::equal(files.read_ranges("matrix", {{3, 14}}, kTransposed), model.matrix.t().flatten().slice(0, 3, 14)));
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
  const auto expect_refused = [&](const TensorPiece& piece) {
    write_pieces(scratch / "b" / part_file_name("model", 1, 3), {piece});
    EXPECT_THROW(TensorFiles(scratch / "b", manifest, "model"), CheckpointError);
  };
  expect_refused({"matrix", {5, 8}, {{12, 23}}, {}, at::rand({11})});
  for (const int64_t begin : {int64_t{-1}, int64_t{1} << 62}) {
    expect_refused({"matrix", {5, 7}, {{begin, begin + 11}}, {}, at::rand({11})});
  }
  expect_refused({"nothing", {0, 7}, {}, {}, at::rand({0})});
  // Ranges of fewer or more numbers than there are, backwards, and orders that are none of two dimensions.
  for (const std::vector<NumberRange>& ranges :
       {std::vector<NumberRange>{{12, 22}}, {{12, 20}, {20, 24}}, {{23, 12}}}) {
    expect_refused({"matrix", {5, 7}, ranges, {}, at::rand({11})});
  }
  for (const DimensionOrder& order : {DimensionOrder{0, 0}, {1, 2}, {0}, kNhwc, kTransposed}) {
    expect_refused({"matrix", {5, 7}, {{12, 23}}, order, at::rand({11})});
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
  whole.model = {{"count", model.count},   {"halves", model.halves}, {"kernel", model.kernel},
                 {"matrix", model.matrix}, {"small", model.small},   {"turned", model.turned}};
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
