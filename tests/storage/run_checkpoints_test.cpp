#include "dalle/storage/run_checkpoints.h"

#include <sys/wait.h>

#include "dalle/storage/manifest.h"
#include "storage/scratch.h"

namespace dalle::storage {
namespace {

void save_steps(const fs::path& run, const std::vector<int64_t>& steps) {
  for (const int64_t step : steps) {
    save_checkpoint(checkpoint_path(run, step), sample_checkpoint(step));
    update_latest(run, checkpoint_name(step));
  }
}

TEST(RunCheckpoints, NamesSortByStep) {
  const Scratch scratch("run-names");
  EXPECT_EQ(checkpoint_name(100), "step-00000100");
  EXPECT_EQ(checkpoint_name(123456789012), "step-123456789012");
  fs::create_directories(scratch / "checkpoints/step-123456789");
  fs::create_directories(scratch / "checkpoints/step-00000100");
  fs::create_directories(scratch / "checkpoints/step-00000007.tmp-1");
  fs::create_directories(scratch / "checkpoints/other");
  write_file(scratch / "checkpoints/step-00000005", "a file");
  EXPECT_EQ(list_checkpoints(scratch.path()), (std::vector<std::string>{"step-00000100", "step-123456789"}));
  EXPECT_TRUE(list_checkpoints(scratch / "none").empty());
}

TEST(RunCheckpoints, ResolvesFoldersRunsAndFiles) {
  const Scratch scratch("run-resolve");
  const auto run = scratch / "run";
  save_steps(run, {1, 2});
  write_bare_checkpoint(scratch / "m.safetensors", sample_checkpoint());
  EXPECT_EQ(resolve_checkpoint(checkpoint_path(run, 1)), checkpoint_path(run, 1));
  EXPECT_EQ(resolve_checkpoint(run), fs::canonical(checkpoint_path(run, 2)));
  EXPECT_EQ(resolve_checkpoint(run / "checkpoints/latest"), run / "checkpoints/latest");
  EXPECT_EQ(resolve_checkpoint(scratch / "m.safetensors"), scratch / "m.safetensors");
  update_latest(run, checkpoint_name(1));
  EXPECT_EQ(resolve_checkpoint(run), fs::canonical(checkpoint_path(run, 1)));
  fs::rename(run, scratch / "moved");  // the link is relative
  EXPECT_EQ(load_checkpoint(resolve_checkpoint(scratch / "moved")).step, 1);
}

TEST(RunCheckpoints, NothingToResolveSaysWhatWasLookedFor) {
  const Scratch scratch("run-nothing");
  write_file(scratch / "file.pt", "x");
  fs::create_directories(scratch / "empty");
  save_steps(scratch / "run", {3});
  fs::remove_all(checkpoint_path(scratch / "run", 3));
  for (const char* name : {"none", "file.pt", "empty", "run"}) {
    const std::string message = message_of<ConfigError>([&] { resolve_checkpoint(scratch / name); });
    EXPECT_NE(message.find((scratch / name).string()), std::string::npos) << message;
    EXPECT_NE(message.find("checkpoints/latest"), std::string::npos) << message;
  }
  const std::string dangling = message_of<ConfigError>([&] { resolve_checkpoint(scratch / "run"); });
  EXPECT_NE(dangling.find("step-00000003"), std::string::npos) << dangling;
}

TEST(RunCheckpoints, PruningKeepsTheNewestTheNamedAndTheLatest) {
  const Scratch scratch("run-prune");
  save_steps(scratch.path(), {1, 2, 3, 4, 5, 6});
  update_latest(scratch.path(), checkpoint_name(2));
  EXPECT_TRUE(prune_checkpoints(scratch.path(), 0).empty());
  const auto removed = prune_checkpoints(scratch.path(), 2, {checkpoint_name(4)});
  EXPECT_EQ(removed, (std::vector<std::string>{"step-00000001", "step-00000003"}));
  EXPECT_EQ(list_checkpoints(scratch.path()),
            (std::vector<std::string>{"step-00000002", "step-00000004", "step-00000005", "step-00000006"}));
  EXPECT_TRUE(prune_checkpoints(scratch.path(), 100).empty());
}

TEST(RunCheckpoints, LaterOnesOfABranchThatIsLeftAreKeptAside) {
  const Scratch scratch("run-left");
  save_steps(scratch.path(), {3, 6, 9, 12});
  fs::create_directories(scratch / "checkpoints/left-step-00000012");  // of an earlier time
  EXPECT_EQ(leave_later_checkpoints(scratch.path(), checkpoint_name(6)),
            (std::vector<std::string>{"left-step-00000009", "left-step-00000012.2"}));
  EXPECT_EQ(list_checkpoints(scratch.path()), (std::vector<std::string>{"step-00000003", "step-00000006"}));
  EXPECT_EQ(load_latest_good(scratch.path()).folder.filename(), checkpoint_name(6));
  prune_checkpoints(scratch.path(), 1);
  EXPECT_EQ(load_checkpoint(scratch / "checkpoints/left-step-00000012.2").step, 12);
  EXPECT_TRUE(leave_later_checkpoints(scratch.path(), checkpoint_name(6)).empty());
}

TEST(RunCheckpoints, PruningRemovesTemporariesOfDeadProcessesOnly) {
  const Scratch scratch("run-stale");
  save_steps(scratch.path(), {1});
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  ::waitpid(child, nullptr, 0);
  const std::string dead = dalle::str("step-00000002.tmp-", child),
                    alive = dalle::str("step-00000003.tmp-", ::getpid());
  fs::create_directories(scratch / "checkpoints" / dead);
  fs::create_directories(scratch / "checkpoints" / alive);
  fs::create_directories(scratch / "checkpoints/notes.tmp-1");
  EXPECT_EQ(prune_checkpoints(scratch.path(), 0), std::vector<std::string>{dead});
  EXPECT_TRUE(fs::exists(scratch / "checkpoints" / alive));
  EXPECT_TRUE(fs::exists(scratch / "checkpoints/notes.tmp-1"));
}

TEST(RunCheckpoints, LatestGoodWalksBackOverDamage) {
  const Scratch scratch("run-good");
  save_steps(scratch.path(), {1, 2, 3, 4});
  EXPECT_EQ(load_latest_good(scratch.path()).checkpoint.step, 4);
  update_latest(scratch.path(), checkpoint_name(3));  // latest rules over newer ones
  EXPECT_EQ(load_latest_good(scratch.path()).checkpoint.step, 3);
  update_latest(scratch.path(), checkpoint_name(4));
  const auto model = checkpoint_path(scratch.path(), 4) / "model.safetensors";
  std::string content = read_file(model);
  content.back() = static_cast<char>(content.back() ^ 1);
  overwrite(model, content);
  fs::remove(checkpoint_path(scratch.path(), 3) / kManifestName);
  const LoadedCheckpoint good = load_latest_good(scratch.path());
  EXPECT_EQ(good.checkpoint.step, 2);
  EXPECT_EQ(good.folder.filename(), "step-00000002");
  fs::remove(scratch / "checkpoints/latest");
  EXPECT_EQ(load_latest_good(scratch.path()).checkpoint.step, 2);
  fs::remove(checkpoint_path(scratch.path(), 2) / "state.json");
  fs::remove(checkpoint_path(scratch.path(), 1) / "state.json");
  EXPECT_THROW(load_latest_good(scratch.path()), CheckpointError);
  EXPECT_THROW(load_latest_good(scratch / "none"), ConfigError);
}

}  // namespace
}  // namespace dalle::storage
