// import-weights and export-weights as a user calls them.
#include "dalle/storage/safetensors.h"
#include "dalle/storage/torch_file.h"
#include "integration/tiny_pipeline.h"
#include "support/golden.h"
#include "support/tensor_matchers.h"

namespace dalle::integration {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string golden_file(const std::string& name) { return testing::golden_path("torch/" + name).string(); }

std::vector<std::string> import_arguments(const fs::path& out, const std::string& encoder = golden_file("encoder.pkl"),
                                          const std::string& image_size = "32") {
  return {"openai-dvae",  "--encoder", encoder, "--decoder", golden_file("decoder.pkl"),
          "--image-size", image_size,  "--out", out.string()};
}

std::string picture(const Workplace& place) {
  std::string pixels;
  for (int i = 0; i < 32 * 32; ++i)
    pixels += {static_cast<char>(i), static_cast<char>(i / 7), static_cast<char>(3 * i)};
  return place.file("picture.png", testing::make_png(32, 32, 2, 8, pixels));
}

TEST(Weights, AnImportedDvaeServesEveryCommandThatTakesOne) {
  const Workplace place("import");
  const Outcome imported = run_well("import-weights", import_arguments(place / "deep/dvae"));
  EXPECT_THAT(imported.err, AllOf(HasSubstr("150 tensors"), HasSubstr("identity")));
  EXPECT_THAT(run_well("inspect-checkpoint", {place.at("deep/dvae"), "--verify"}).out,
              AllOf(HasSubstr("kind: dvae"), HasSubstr("match their checksums")));
  run_well("reconstruct",
           {picture(place), "--dvae", place.at("deep/dvae"), "--out", place.at("out"), "--threads", "1"});
  EXPECT_TRUE(fs::exists(place / "out/picture.png"));
  const std::string model = "model:\n  image_size: 32\n  vocab_size: 16\n  hidden_dim: 8\n  decoder_init_dim: 8\n";
  const Outcome trained = place.train(
      "dvae", trainer_yaml(1, emoji("train.tar"), str("  init_from: ", place.at("deep/dvae"), "\n")) + model, "run");
  EXPECT_EQ(trained.exit_code, 0) << trained.err;
}

TEST(Weights, WhatIsExportedIsImportedAgain) {
  const Workplace place("export");
  run_well("import-weights", import_arguments(place / "dvae"));
  const std::string identity = storage::load_checkpoint(place / "dvae").identities.at("model");
  run_well("export-weights", {place.at("dvae"), "--out", place.at("dvae.pt")});
  run_well("export-weights", {place.at("dvae"), "--out", place.at("dvae.safetensors")});
  EXPECT_EQ(storage::load_checkpoint(place / "dvae.safetensors").identities.at("model"), identity);
  run_well("reconstruct",
           {picture(place), "--dvae", place.at("dvae.safetensors"), "--out", place.at("out"), "--threads", "1"});
  for (const char* file : {"dvae.pt", "dvae.safetensors"}) {
    const std::string out = str("again-", file, ".safetensors");
    run_well("import-weights", {"openai-dvae", "--encoder", place.at(file), "--decoder", place.at(file), "--image-size",
                                "32", "--out", place.at(out)});
    EXPECT_EQ(storage::load_checkpoint(place / out).identities.at("model"), identity) << file;
  }
}

TEST(Weights, AVectorQuantisedModelIsExportedWithItsCodebook) {
  const Workplace place("export-vq");
  const std::string model =
      "model:\n  image_size: 16\n  vocab_size: 16\n  hidden_dim: 8\n  num_groups: 3\n  num_blocks_per_group: 1\n"
      "  decoder_init_dim: 8\n  quantizer: vq\n";
  place.train_well("dvae", trainer_yaml(3, emoji("train.tar")) + model, "vq");
  const auto checkpoint = storage::load_checkpoint(storage::resolve_checkpoint(place / "vq"));
  for (const bool raw : {false, true}) {
    const auto& expected = raw ? checkpoint.model : checkpoint.ema;
    ASSERT_NE(storage::find_tensor(expected, "quantizer.codebook"), nullptr);
    ASSERT_NE(storage::find_tensor(expected, "quantizer.count"), nullptr);
    for (const std::string file : {"vq.safetensors", "vq.pt"}) {
      SCOPED_TRACE(str(file, raw ? " raw" : ""));
      const std::string out = str(raw ? "raw-" : "", file);
      std::vector<std::string> arguments{place.at("vq"), "--out", place.at(out)};
      if (raw) arguments.emplace_back("--raw-weights");
      run_well("export-weights", arguments);
      const auto tensors = file.ends_with(".pt") ? storage::read_torch_file(place / out).tensors
                                                 : storage::read_safetensors(place / out).tensors;
      ASSERT_EQ(tensors.size(), expected.size());
      for (const auto& [name, tensor] : expected) {
        const Tensor* read = storage::find_tensor(tensors, name);
        ASSERT_NE(read, nullptr) << name;
        EXPECT_TRUE(testing::bitwise_equal(*read, tensor)) << name;
      }
    }
  }
  // The safetensors file is a whole model: it codes and decodes as the run does.
  for (const char* dvae : {"vq", "vq.safetensors"}) {
    run_well("reconstruct", {picture(place), "--dvae", place.at(dvae), "--out", place.at(str("out-", dvae)),
                             "--threads", "1", "--save-tokens"});
  }
  for (const auto& entry : fs::directory_iterator(place / "out-vq")) {
    const fs::path name = entry.path().filename();
    if (name.extension() != ".png") continue;
    EXPECT_EQ(read_file(place / "out-vq.safetensors" / name), read_file(entry.path())) << name;
  }
}

std::vector<std::string> clip_arguments(const fs::path& out, const std::string& kind = "openai-clip") {
  return {kind,          testing::golden_path("clip_packages/openai.pt").string(),
          "--tokenizer", testing::golden_path("clip_bpe/vocabulary.txt.gz").string(),
          "--out",       out.string()};
}

TEST(Weights, AnImportedClipScoresPictures) {
  const Workplace place("import-clip");
  EXPECT_THAT(run_well("import-weights", clip_arguments(place / "clip")).err, HasSubstr("clip, 38 tensors"));
  EXPECT_THAT(run_well("inspect-checkpoint", {place.at("clip"), "--verify", "--tokenize", "Caf\u00e9 &amp; more"}).out,
              AllOf(HasSubstr("clip_bpe"), HasSubstr("normalised: caf\u00e9 & more"), HasSubstr("quick_gelu")));
  const std::vector<std::string> scoring{
      picture(place), "--clip", place.at("clip"),        "--caption", "a flag", "--caption",
      "a cat",        "--json", place.at("scores.json"), "--threads", "1"};
  run_well("score-images", scoring);
  const auto quick = nlohmann::json::parse(read_file(place / "scores.json"));
  EXPECT_EQ(quick.at("captions").size(), 2u);
  run_well("import-weights", clip_arguments(place / "gelu.safetensors", "open-clip"));
  auto with_gelu = scoring;
  with_gelu[2] = place.at("gelu.safetensors");
  run_well("score-images", with_gelu);
  const auto gelu = nlohmann::json::parse(read_file(place / "scores.json"));
  const auto cosine = [](const nlohmann::json& report) {
    return report.at("captions").at(0).at("images").at(0).at("cosine").get<double>();
  };
  EXPECT_GT(std::abs(cosine(quick) - cosine(gelu)), 1e-4) << "open-clip means GELU unless told otherwise";
  auto quick_arguments = clip_arguments(place / "quick2", "open-clip");
  quick_arguments.push_back("--quick-gelu");
  EXPECT_EQ(run_well("import-weights", quick_arguments).exit_code, 0);
  with_gelu[2] = place.at("quick2");
  run_well("score-images", with_gelu);
  EXPECT_EQ(cosine(nlohmann::json::parse(read_file(place / "scores.json"))), cosine(quick));
}

TEST(Weights, ClipsOfAnotherKindLeaveNothing) {
  const Workplace place("import-clip-bad");
  auto arguments = clip_arguments(place / "x");
  arguments[1] = golden_file("encoder.pkl");
  Outcome outcome = run("import-weights", arguments);
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.err, HasSubstr("visual.conv1.weight"));
  arguments = clip_arguments(place / "x");
  arguments[3] = testing::golden_path("sentencepiece.model").string();
  EXPECT_EQ(run("import-weights", arguments).exit_code, 1);
  const auto usage = [&](std::vector<std::string> given, const char* says) {
    outcome = run("import-weights", given);
    EXPECT_EQ(outcome.exit_code, 2) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(says));
  };
  usage({"openai-clip", "--out", place.at("x")}, "one weight file");
  usage({"openai-clip", place.at("none.pt"), "--out", place.at("x")}, "nothing there");
  arguments = clip_arguments(place / "x");
  usage({arguments[0], arguments[1], "--out", place.at("x")}, "--tokenizer FILE");
  arguments.push_back("--quick-gelu");
  usage(arguments, "--quick-gelu is not for this kind");
  EXPECT_TRUE(fs::is_empty(place.path()));
}

TEST(Weights, ExportTakesTheAveragedWeightsUnlessToldOtherwise) {
  const auto& system = TinySystem::instance();
  const Workplace place("export-ema");
  const auto checkpoint = storage::load_checkpoint(storage::resolve_checkpoint(system / "prior"));
  run_well("export-weights", {system.at("prior"), "--out", place.at("ema.safetensors")});
  run_well("export-weights", {system.at("prior"), "--raw-weights", "--out", place.at("raw.safetensors")});
  const auto ema = storage::load_checkpoint(place / "ema.safetensors"),
             raw = storage::load_checkpoint(place / "raw.safetensors");
  EXPECT_EQ(ema.tokenizer, checkpoint.tokenizer);
  ASSERT_EQ(ema.model.size(), checkpoint.ema.size());
  EXPECT_TRUE(at::equal(ema.model[0].tensor, checkpoint.ema[0].tensor));
  EXPECT_TRUE(at::equal(raw.model[0].tensor, checkpoint.model[0].tensor));
}

TEST(Weights, WrongUsageIsExitCode2AndLeavesNothing) {
  const Workplace place("weights-usage");
  const auto expect_usage = [&](const std::string& command, const std::vector<std::string>& arguments,
                                const char* says) {
    const Outcome outcome = run(command, arguments);
    EXPECT_EQ(outcome.exit_code, 2) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(says));
  };
  expect_usage("import-weights", {}, "openai-dvae");
  expect_usage("import-weights", {"openai-clipp", "--out", place.at("x")}, "'openai-clipp'");
  expect_usage("import-weights", {"openai-dvae", "--out", place.at("x")}, "--encoder FILE");
  expect_usage("import-weights", {"openai-dvae", "--encoder", place.at("none.pkl"), "--out", place.at("x")},
               "nothing there");
  expect_usage("import-weights", import_arguments(place / "x", golden_file("encoder.pkl"), "36"), "--image-size");
  expect_usage("import-weights", import_arguments(place.path()), "where nothing is yet");
  expect_usage("export-weights", {}, "expected a checkpoint");
  expect_usage("export-weights", {place.at("none"), "--out", place.at("x.pt")}, "no such file");
  expect_usage("export-weights", {place.at("none"), "--out", place.at("x.onnx")}, ".safetensors or .pt");
  expect_usage("reconstruct", {picture(place), "--dvae", golden_file("encoder.pkl"), "--out", place.at("x")},
               "import-weights openai-dvae, openai-clip or open-clip");
  fs::remove(place / "picture.png");
  EXPECT_TRUE(fs::is_empty(place.path()));
}

TEST(Weights, BadFilesAreExitCode1AndLeaveNothing) {
  const Workplace place("weights-bad");
  std::string bytes = read_file(golden_file("encoder.pkl"));
  const std::string cut = place.file("cut.pkl", bytes.substr(0, bytes.size() / 2));
  bytes[100'000] = static_cast<char>(bytes[100'000] ^ 1);
  const std::string flipped = place.file("flipped.pkl", bytes);
  for (const auto& bad : {cut, flipped, golden_file("state.pt"), golden_file("state_legacy.pt")}) {
    const Outcome outcome = run("import-weights", import_arguments(place / "x", bad));
    EXPECT_EQ(outcome.exit_code, 1) << bad << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(bad));
  }
  const Launch full{.max_file_bytes = 10'000};
  EXPECT_EQ(run("import-weights", import_arguments(place / "x"), full).exit_code, 1);
  EXPECT_EQ(run("import-weights", import_arguments(place / "x.safetensors"), full).exit_code, 1);
  run_well("import-weights", import_arguments(place / "dvae"));
  EXPECT_EQ(run("export-weights", {place.at("dvae"), "--out", place.at("x.pt")}, full).exit_code, 1);
  EXPECT_EQ(listing(place.path()).size(), 6u) << "cut.pkl, flipped.pkl and the checkpoint of three files in its folder";
}

}  // namespace
}  // namespace dalle::integration
