#include "dalle/storage/checkpoint.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "dalle/storage/manifest.h"
#include "dalle/storage/run_checkpoints.h"
#include "dalle/storage/safetensors.h"
#include "storage/scratch.h"

namespace dalle::storage {
namespace {

size_t num_entries(const fs::path& folder) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

/// No file may grow beyond `bytes` while this lives: write(2) then fails as on a full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    old_handler_ = ::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &old_);
    rlimit limit = old_;
    limit.rlim_cur = bytes;
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &old_);
    ::signal(SIGXFSZ, old_handler_);
  }

 private:
  rlimit old_{};
  void (*old_handler_)(int) = nullptr;
};

TEST(CheckpointFolder, RoundTripIsBitwise) {
  const Scratch scratch("checkpoint-round");
  const Checkpoint saved = sample_checkpoint();
  save_checkpoint(scratch / "step-00000007", saved);
  const Checkpoint got = load_checkpoint(scratch / "step-00000007");
  expect_same(got, saved);
  expect_same(got.model, saved.model);
  expect_same(got.ema, saved.ema);
  expect_same(got.optimizer, saved.optimizer);
  EXPECT_EQ(num_entries(scratch.path()), 1u);
  EXPECT_EQ(num_entries(scratch / "step-00000007"), 6u);
  EXPECT_NO_THROW(verify_checkpoint(scratch / "step-00000007"));
}

TEST(CheckpointFolder, OptionalPartsMayBeAbsent) {
  const Scratch scratch("checkpoint-optional");
  Checkpoint saved = sample_checkpoint();
  saved.ema.clear();
  saved.optimizer.clear();
  saved.tokenizer.clear();
  save_checkpoint(scratch / "c", saved);
  EXPECT_EQ(num_entries(scratch / "c"), 3u);
  for (const auto parts : {LoadParts::kAll, LoadParts::kModel, LoadParts::kEvaluation, LoadParts::kWeights}) {
    const Checkpoint got = load_checkpoint(scratch / "c", parts);
    expect_same(got.evaluation_weights(), saved.model);
    EXPECT_TRUE(got.ema.empty());
  }
}

TEST(CheckpointFolder, LoadsOnlyTheAskedParts) {
  const Scratch scratch("checkpoint-parts");
  const Checkpoint saved = sample_checkpoint();
  save_checkpoint(scratch / "c", saved);
  const Checkpoint model = load_checkpoint(scratch / "c", LoadParts::kModel);
  expect_same(model.model, saved.model);
  EXPECT_TRUE(model.ema.empty() && model.optimizer.empty());
  const Checkpoint evaluation = load_checkpoint(scratch / "c", LoadParts::kEvaluation);
  expect_same(evaluation.evaluation_weights(), saved.ema);
  EXPECT_TRUE(evaluation.model.empty() && evaluation.optimizer.empty());
  const Checkpoint weights = load_checkpoint(scratch / "c", LoadParts::kWeights);
  expect_same(weights.model, saved.model);
  expect_same(weights.ema, saved.ema);
  EXPECT_TRUE(weights.optimizer.empty());
  EXPECT_EQ(weights.tokenizer, saved.tokenizer);
}

TEST(CheckpointFolder, SavingOverAnOldOneReplacesIt) {
  const Scratch scratch("checkpoint-replace");
  save_checkpoint(scratch / "c", sample_checkpoint(7));
  write_file(scratch / "c/stray", "left from before");
  save_checkpoint(scratch / "c", sample_checkpoint(9));
  EXPECT_EQ(load_checkpoint(scratch / "c").step, 9);
  EXPECT_FALSE(fs::exists(scratch / "c/stray"));
  EXPECT_EQ(num_entries(scratch.path()), 1u);
}

TEST(CheckpointFolder, MakesMissingParentsAndTakesRelativePaths) {
  const Scratch scratch("checkpoint-parents");
  const fs::path before = fs::current_path();
  fs::current_path(scratch.path());
  save_checkpoint("run/checkpoints/c/", sample_checkpoint());
  EXPECT_EQ(load_checkpoint("run/checkpoints/c").step, 7);
  fs::current_path(before);
}

// ------------------------------------------------------------------------------------------------------------- damage

TEST(CheckpointDamage, EveryTruncatedFileIsNamed) {
  const Scratch scratch("checkpoint-cut");
  save_checkpoint(scratch / "c", sample_checkpoint());
  for (const auto& entry : fs::directory_iterator(scratch / "c")) {
    const std::string whole = read_file(entry.path());
    for (const size_t length :
         {size_t{0}, size_t{1}, size_t{9}, whole.size() / 2, whole.size() - 2, whole.size() - 1}) {
      if (entry.path().filename() == kManifestName && length + 1 == whole.size()) continue;  // the final line feed
      if (length >= whole.size()) continue;
      overwrite(entry.path(), whole.substr(0, length));
      const std::string message = message_of<CheckpointError>([&] { load_checkpoint(scratch / "c"); });
      EXPECT_NE(message.find(entry.path().filename().string()), std::string::npos) << length << ": " << message;
    }
    overwrite(entry.path(), whole);
  }
  EXPECT_NO_THROW(load_checkpoint(scratch / "c"));
}

TEST(CheckpointDamage, EveryFlippedByteIsAnError) {
  const Scratch scratch("checkpoint-flip");
  Checkpoint small = sample_checkpoint();
  small.config_yaml = "a: 1\n";
  save_checkpoint(scratch / "c", small);
  for (const auto& entry : fs::directory_iterator(scratch / "c")) {
    const std::string whole = read_file(entry.path());
    for (size_t i = 0; i < whole.size(); i += entry.path().filename() == kManifestName ? 1 : 5) {
      for (const int flip : {0x01, 0xff}) {
        std::string damaged = whole;
        damaged[i] = static_cast<char>(damaged[i] ^ flip);
        overwrite(entry.path(), damaged);
        EXPECT_THROW(load_checkpoint(scratch / "c"), CheckpointError) << entry.path() << " byte " << i;
      }
    }
    overwrite(entry.path(), whole);
  }
}

TEST(CheckpointDamage, MissingFilesAreNamed) {
  const Scratch scratch("checkpoint-missing");
  for (const char* name : {"model.safetensors", "ema.safetensors", "optimizer.safetensors", "tokenizer.model",
                           "state.json", "MANIFEST.json"}) {
    save_checkpoint(scratch / "c", sample_checkpoint());
    fs::remove(scratch / "c" / name);
    const std::string message = message_of<CheckpointError>([&] { load_checkpoint(scratch / "c", LoadParts::kModel); });
    EXPECT_NE(message.find(name), std::string::npos) << message;
  }
}

TEST(CheckpointDamage, SwappedFilesAndForeignManifestsAreRefused) {
  const Scratch scratch("checkpoint-swap");
  save_checkpoint(scratch / "c", sample_checkpoint(7));
  save_checkpoint(scratch / "d", sample_checkpoint(8));
  fs::rename(scratch / "c/model.safetensors", scratch / "c/other");
  fs::rename(scratch / "c/ema.safetensors", scratch / "c/model.safetensors");
  fs::rename(scratch / "c/other", scratch / "c/ema.safetensors");
  const std::string message = message_of<CheckpointError>([&] { load_checkpoint(scratch / "c"); });
  EXPECT_NE(message.find("checksum"), std::string::npos) << message;
  fs::copy_file(scratch / "c/MANIFEST.json", scratch / "d/MANIFEST.json", fs::copy_options::overwrite_existing);
  EXPECT_THROW(load_checkpoint(scratch / "d"), CheckpointError);
}

TEST(CheckpointDamage, UnknownVersionNamesBoth) {
  const Scratch scratch("checkpoint-version");
  save_checkpoint(scratch / "c", sample_checkpoint());
  std::string manifest = read_file(scratch / "c/MANIFEST.json");
  const std::string key = "\"format_version\": 1";
  manifest.replace(manifest.find(key), key.size(), "\"format_version\": 2");
  overwrite(scratch / "c/MANIFEST.json", manifest);
  const std::string message = message_of<CheckpointError>([&] { load_checkpoint(scratch / "c"); });
  EXPECT_NE(message.find("expected format version 1, got 2"), std::string::npos) << message;
}

// ---------------------------------------------------------------------------------------------- full disk, killed saves

TEST(CheckpointFaults, AFullDiskLeavesThePreviousCheckpointAndNothingElse) {
  const Scratch scratch("checkpoint-full");
  const auto run = scratch / "run";
  save_checkpoint(checkpoint_path(run, 1), sample_checkpoint(1));
  update_latest(run, checkpoint_name(1));
  Checkpoint large = sample_checkpoint(2);
  // In turn model, EMA, optimizer, tokenizer and state are what no longer fits.
  auto bulk = [] { return std::vector<NamedTensor>{{"bulk", at::zeros({20'000})}}; };
  const std::vector<std::function<void(Checkpoint&)>> growths = {
      [&](Checkpoint& c) { c.model = bulk(); }, [&](Checkpoint& c) { c.ema = bulk(); },
      [&](Checkpoint& c) { c.optimizer = bulk(); }, [&](Checkpoint& c) { c.tokenizer.assign(80'000, 't'); },
      [&](Checkpoint& c) { c.config_yaml.assign(80'000, 'c'); }};
  for (const auto& grow : growths) {
    Checkpoint next = large;
    grow(next);
    {
      const FileSizeLimit limit(60'000);
      EXPECT_THROW(save_checkpoint(checkpoint_path(run, 2), next), FileError);
      EXPECT_THROW(save_checkpoint(checkpoint_path(run, 1), next), FileError);
    }
    EXPECT_EQ(num_entries(run / "checkpoints"), 2u);  // step-00000001 and latest
    expect_same(load_checkpoint(resolve_checkpoint(run)), sample_checkpoint(1));
  }
}

TEST(CheckpointFaults, TooLittleSpaceIsSaidBeforeAnythingIsWritten) {
  const Scratch scratch("checkpoint-space");
  Checkpoint large = sample_checkpoint();
  large.ema = {{"bulk", at::zeros({1}).expand({int64_t{1} << 45})}};  // 128 TiB to write, four bytes of memory
  const std::string message = message_of<FileError>([&] { save_checkpoint(scratch / "c", large); });
  EXPECT_NE(message.find("bytes missing"), std::string::npos) << message;
  EXPECT_TRUE(fs::is_empty(scratch.path()));
}

TEST(CheckpointFaults, AKilledSaveIsAllOrNothing) {
  const Scratch scratch("checkpoint-kill");
  const auto run = scratch / "run";
  save_checkpoint(checkpoint_path(run, 1), sample_checkpoint(1));
  update_latest(run, checkpoint_name(1));
  for (int round = 0; round < 12; ++round) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (int64_t step = 2;; step = step % 5 + 1) {  // new names and replacements
        save_checkpoint(checkpoint_path(run, step), sample_checkpoint(step));
        update_latest(run, checkpoint_name(step));
      }
    }
    ::usleep(static_cast<useconds_t>(3000 + 2711 * round));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    for (const auto& name : list_checkpoints(run))
      EXPECT_NO_THROW(verify_checkpoint(run / "checkpoints" / name)) << name;
    EXPECT_NO_THROW(load_checkpoint(resolve_checkpoint(run)));
  }
  prune_checkpoints(run, 0);
  for (const auto& entry : fs::directory_iterator(run / "checkpoints")) {
    const std::string name = entry.path().filename().string();
    EXPECT_FALSE(name.starts_with("step-") && name.find(".tmp-") != std::string::npos) << name;
  }
}

// ---------------------------------------------------------------------------------------------------------- bare files

TEST(BareCheckpoint, CarriesWeightsConfigAndTokenizer) {
  const Scratch scratch("checkpoint-bare");
  const Checkpoint saved = sample_checkpoint();
  write_bare_checkpoint(scratch / "m.safetensors", saved);
  const Checkpoint got = load_checkpoint(scratch / "m.safetensors");
  expect_same(got, saved);
  expect_same(got.model, saved.ema);
  expect_same(got.evaluation_weights(), saved.ema);
  EXPECT_TRUE(got.ema.empty() && got.optimizer.empty());
  EXPECT_NO_THROW(verify_checkpoint(scratch / "m.safetensors"));
}

TEST(BareCheckpoint, OtherSafetensorsFilesAreRefusedWithAHint) {
  const Scratch scratch("checkpoint-foreign");
  const auto path = scratch / "m.safetensors";
  write_safetensors(path, {{{"a", at::zeros({1})}}, {}});
  const std::string message = message_of<CheckpointError>([&] { load_checkpoint(path); });
  EXPECT_NE(message.find("import-weights"), std::string::npos) << message;
  Checkpoint saved = sample_checkpoint();
  write_bare_checkpoint(path, saved);
  SafetensorsFile file = read_safetensors(path);
  file.metadata["dalle.tokenizer"] = "not base64";
  write_safetensors(path, file);
  EXPECT_THROW(load_checkpoint(path), CheckpointError);
  file.metadata["dalle.state"] = R"({"format_version":1,"kind":"prior","step":"x"})";
  write_safetensors(path, file);
  EXPECT_THROW(load_checkpoint(path), CheckpointError);
}

}  // namespace
}  // namespace dalle::storage
