// ctest: slow
// The whole main path in small: tokenizer -> dVAE -> CLIP -> prior -> reranked samples, and the commands on pictures.
#include <algorithm>
#include <cstdio>
#include <map>
#include <set>

#include "dalle/data/image_codec.h"
#include "dalle/generation/contact_sheet.h"
#include "integration/tiny_pipeline.h"

namespace dalle::integration {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

const std::vector<std::string> kTwoCaptions{"--caption",    "red apple", "--caption", "a blue square",
                                            "--candidates", "6",         "--keep",    "4"};

TEST(Pipeline, EveryTrainerLeavesItsRunDirectory) {
  const auto& system = TinySystem::instance();
  for (const char* file : {"tokenizer/tokenizer.model", "tokenizer/log.txt"})
    EXPECT_TRUE(fs::exists(system / file)) << file;
  for (const std::string run : {"dvae", "clip", "prior"}) {
    EXPECT_TRUE(fs::exists(system / run / "checkpoints/latest/MANIFEST.json")) << run;
    for (const char* part : {"config.yaml", "metrics.jsonl", "log.txt", "tensorboard", "samples"}) {
      EXPECT_TRUE(fs::exists(system / run / part)) << run << "/" << part;
    }
    EXPECT_FALSE(fs::is_empty(system / run / "samples"));
    EXPECT_EQ(train_lines(system / run).size(), run == "clip" ? 6U : 12U);
  }
}

TEST(Pipeline, TheCompleteConfigOfARunStartsTheSameRun) {
  const auto& system = TinySystem::instance();
  const Workplace again("config-again");
  const auto outcome =
      run("train-dvae", {system.at("dvae/config.yaml"), "--run-dir", again.at("dvae"), "--threads", "1"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  expect_same_weights(again / "dvae/checkpoints/latest", system / "dvae/checkpoints/latest");
}

TEST(Pipeline, ARunWithoutADirectoryIsKeptUnderItsNameAndTime) {
  const Workplace place("default-run");
  const auto outcome =
      run("train-dvae", {place.file("small.yaml", dvae_yaml(1)), "--threads", "1"}, {.directory = place.path()});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  std::vector<fs::path> runs;
  for (const auto& entry : fs::directory_iterator(place / "runs")) runs.push_back(entry.path());
  ASSERT_EQ(runs.size(), 1U);
  EXPECT_TRUE(runs[0].filename().string().starts_with("small-20")) << runs[0];
  EXPECT_EQ(storage::load_latest_good(runs[0]).checkpoint.step, 1);
}

std::vector<double> scores_of(const nlohmann::json& caption) {
  std::vector<double> scores;
  for (const auto& candidate : caption["candidates"]) scores.push_back(candidate["score"]);
  return scores;
}

TEST(Pipeline, SamplesAreShownBestFirst) {
  const auto& system = TinySystem::instance();
  auto arguments = sample_arguments(system, "samples", kTwoCaptions);
  arguments.push_back("--save-tokens");
  run_well("sample-and-rerank", arguments);
  const fs::path out = system / "samples";
  const auto scores = json_of(out / "scores.json");
  EXPECT_EQ(scores["command"], "sample-and-rerank");
  EXPECT_EQ(scores["score"], "clip");
  ASSERT_EQ(scores["captions"].size(), 2U);
  for (size_t c = 0; c < 2; ++c) {
    const auto& caption = scores["captions"][c];
    EXPECT_EQ(caption["caption"], kTwoCaptions[2 * c + 1]);
    ASSERT_EQ(caption["candidates"].size(), 6U);
    std::set<int64_t> numbers;
    std::vector<generation::SheetCell> best;
    for (size_t i = 0; i < 6; ++i) {
      const auto& candidate = caption["candidates"][i];
      EXPECT_EQ(candidate["rank"], i + 1);
      EXPECT_EQ(candidate["kept"], i < 4);
      EXPECT_LT(candidate["log_likelihood"].get<double>(), 0);
      numbers.insert(candidate["candidate"].get<int64_t>());
      const Tensor picture = data::decode_picture(read_file(out / candidate["file"].get<std::string>()));
      EXPECT_EQ(picture.sizes(), (std::vector<int64_t>{16, 16, 3}));
      char label[32];
      std::snprintf(label, sizeof label, "%d: %.3f", candidate["candidate"].get<int>(),
                    candidate["score"].get<double>());
      if (i < 4) best.push_back({.picture = picture, .label = label});
    }
    EXPECT_EQ(numbers, (std::set<int64_t>{0, 1, 2, 3, 4, 5}));
    const auto order = scores_of(caption);
    EXPECT_TRUE(std::is_sorted(order.rbegin(), order.rend())) << caption;
    EXPECT_GT(order.front(), order.back());
    const Tensor sheet = data::decode_picture(read_file(out / caption["contact_sheet"].get<std::string>()));
    EXPECT_TRUE(sheet.equal(generation::contact_sheet(
        best, {.title = caption["caption"], .subtitle = "best 4 of 6, by clip; number of the candidate: score"})))
        << "the best four, best first";
    const auto tokens = json_of(out / str("caption-000", c, "/tokens.json"));
    ASSERT_EQ(tokens["tokens"].size(), 6U);
    for (const auto& row : tokens["tokens"]) {
      ASSERT_EQ(row.size(), 16U);
      for (const int64_t token : row) EXPECT_TRUE(token >= 0 && token < 16) << token;
    }
  }
  EXPECT_TRUE(fs::exists(out / "contact-sheet.png"));
  const std::string page = read_file(out / "index.html");
  EXPECT_THAT(page, AllOf(HasSubstr("red apple"), HasSubstr("caption-0001/candidate-0005.png")));
  std::set<std::string> roles;
  for (const auto& model : scores["models"]) roles.insert(model["role"]);
  EXPECT_EQ(roles, (std::set<std::string>{"prior", "dvae", "clip", "tokenizer"}));
}

// The pictures on disk hold what the scores say: CLIP, asked again about the files, gives the same order.
TEST(Pipeline, TheScoresAreThoseOfThePictures) {
  const auto& system = TinySystem::instance();
  run_well("sample-and-rerank", sample_arguments(system, "scored", kTwoCaptions));
  const auto caption = json_of(system / "scored/scores.json")["captions"][0];
  std::vector<std::string> arguments{"--clip", system.at("clip"),      "--caption", "red apple", "--precision", "f32",
                                     "--json", system.at("again.json")};
  std::map<std::string, double> expected;
  for (const auto& candidate : caption["candidates"]) {
    const std::string file = system.at("scored/" + candidate["file"].get<std::string>());
    arguments.insert(arguments.begin(), file);
    expected[file] = candidate["score"];
  }
  const auto outcome = run_well("score-images", arguments);
  EXPECT_THAT(outcome.out, HasSubstr("red apple\n    1  "));
  const auto images = json_of(system / "again.json")["captions"][0]["images"];
  ASSERT_EQ(images.size(), 6U);
  double before = 2;
  for (const auto& image : images) {
    EXPECT_NEAR(image["cosine"].get<double>(), expected.at(image["file"]), 0.02) << "8 bits per sub-pixel apart";
    EXPECT_LE(image["cosine"].get<double>(), before);
    before = image["cosine"];
  }
}

// What a user can get wrong about score-images: the message leads to it, and no file is left.
TEST(Pipeline, ScoreImagesNamesBadInputAndLeavesNothing) {
  const auto& system = TinySystem::instance();
  const std::string good = system.file("grey.png", testing::make_png(16, 16, 2, 8, std::string(16 * 16 * 3, 'g')));
  const std::string text = system.file("letter.png", "this is no picture");
  struct Case {
    const char* name;
    std::vector<std::string> arguments;  // besides --json
    int exit_code;
    std::string message;
  };
  const std::string clip = system.at("clip");
  const Case cases[] = {
      {"empty caption", {good, "--clip", clip, "--caption", ""}, 2, "--caption: expected a text, got an empty one"},
      {"no UTF-8", {good, "--clip", clip, "--caption", "caf\xE9"}, 2, "--caption: expected UTF-8 text"},
      {"long", {good, "--clip", clip, "--caption", std::string(10'000, 'x')}, 2, "at most 4096 characters, got 10000"},
      {"no caption", {good, "--clip", clip}, 2, "expected --caption TEXT"},
      {"no pictures", {"--clip", clip, "--caption", "sun"}, 2, "expected picture files"},
      {"no picture", {good, text, "--clip", clip, "--caption", "sun"}, 1, "letter.png"},
      {"a folder", {good, clip, "--clip", clip, "--caption", "sun"}, 2, "expected a picture file, got a folder"},
      {"a dVAE", {good, "--clip", system.at("dvae"), "--caption", "sun"}, 2, "expected a checkpoint of a clip"},
      {"nothing there", {good, "--clip", system.at("nowhere"), "--caption", "sun"}, 2, "nowhere"}};
  const auto before = listing(system / ".");
  for (const Case& c : cases) {
    auto arguments = c.arguments;
    arguments.insert(arguments.end(), {"--json", system.at("bad-scores.json")});
    const auto outcome = run("score-images", arguments);
    EXPECT_EQ(outcome.exit_code, c.exit_code) << c.name << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(c.message)) << c.name;
    EXPECT_EQ(outcome.out, "") << c.name;
  }
  for (const auto& [json, message] :
       std::map<std::string, std::string>{{system.at("missing/scores.json"), "no folder " + system.at("missing")},
                                          {clip, "got a folder"},
                                          {good, "got a picture"}}) {
    const auto outcome = run("score-images", {good, "--clip", clip, "--caption", "sun", "--json", json});
    EXPECT_EQ(outcome.exit_code, 2) << outcome.err;
    EXPECT_THAT(outcome.err, AllOf(HasSubstr("--json " + json), HasSubstr(message), HasSubstr("hint: ")));
    EXPECT_EQ(outcome.out, "") << "found before the work is done";
  }
  EXPECT_EQ(listing(system / "."), before);
  const auto cut = run("score-images", {good, "--clip", clip, "--caption", std::string(4000, 'x')});
  EXPECT_EQ(cut.exit_code, 0) << cut.err;
  EXPECT_THAT(cut.err, AllOf(HasSubstr("longer than the 14 tokens that CLIP reads and was cut"),
                             Not(HasSubstr(std::string(200, 'x')))));
}

TEST(Pipeline, RerankingIsJudgedByOthersThanTheReranker) {
  const auto& system = TinySystem::instance();
  run_well("sample-and-rerank",
           sample_arguments(system, "judged", {"--caption", "red apple", "--caption", "balloon", "--candidates", "6"}));
  const std::vector<std::string> arguments{"--samples",        system.at("judged"), "--data",
                                           emoji("train.tar"), "--threads",         "1"};
  const auto pixels = run("reranking-report", arguments);
  EXPECT_EQ(pixels.exit_code, 1) << "two captions of a tiny model show nothing: " << pixels.out << pixels.err;
  EXPECT_THAT(pixels.out, AllOf(HasSubstr("nearest training picture is its own"), HasSubstr("       2          6 "),
                                HasSubstr("MISSED")));
  auto with_judge = arguments;
  with_judge.insert(with_judge.end(), {"--judge", system.at("clip")});
  const auto refused = run("reranking-report", with_judge);
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_THAT(refused.err, HasSubstr("expected another CLIP than the reranker"));
  const auto lost = run("reranking-report", {"--samples", system.at("clip"), "--data", emoji("train.tar")});
  EXPECT_EQ(lost.exit_code, 2);
  EXPECT_THAT(lost.err, HasSubstr("one without scores.json"));
}

TEST(Pipeline, OtherOrdersNeedNoClip) {
  const auto& system = TinySystem::instance();
  for (const std::string by : {"likelihood", "none"}) {
    run_well("sample-and-rerank",
             {"--prior", system.at("prior"), "--dvae", system.at("dvae"), "--rerank", by, "--caption", "sun",
              "--candidates", "5", "--out", system.at("by-" + by), "--threads", "1"});
    const auto scores = json_of(system / ("by-" + by) / "scores.json");
    EXPECT_EQ(scores["score"], by);
    const auto& candidates = scores["captions"][0]["candidates"];
    ASSERT_EQ(candidates.size(), 5U);
    for (size_t i = 1; i < 5; ++i) {
      if (by == "none")
        EXPECT_EQ(candidates[i]["candidate"], i);
      else
        EXPECT_GE(candidates[i - 1]["log_likelihood"], candidates[i]["log_likelihood"]);
    }
  }
  const auto outcome = run("sample-and-rerank", {"--prior", system.at("prior"), "--dvae", system.at("dvae"),
                                                 "--caption", "sun", "--out", system.at("no-clip")});
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("--clip"), HasSubstr("--rerank likelihood")));
  EXPECT_FALSE(fs::exists(system / "no-clip"));
}

TEST(Pipeline, ASeedGivesTheSameBytesAgain) {
  const auto& system = TinySystem::instance();
  for (const std::string out : {"first", "second"})
    run_well("sample-and-rerank", sample_arguments(system, out, kTwoCaptions));
  auto other = kTwoCaptions;
  other.insert(other.end(), {"--seed", "1"});
  run_well("sample-and-rerank", sample_arguments(system, "third", other));
  int64_t pictures = 0, same_in_third = 0;
  for (const auto& entry : fs::recursive_directory_iterator(system / "first")) {
    if (entry.path().extension() != ".png") continue;
    ++pictures;
    const fs::path name = fs::relative(entry.path(), system / "first");
    EXPECT_TRUE(read_file(entry.path()) == read_file(system / "second" / name)) << name;
    if (fs::exists(system / "third" / name))
      same_in_third += read_file(entry.path()) == read_file(system / "third" / name);
  }
  EXPECT_EQ(pictures, 2 * 6 + 2 + 1);
  EXPECT_LT(same_in_third, 3) << "another seed draws other pictures";
}

TEST(Pipeline, TheBatchSizeDoesNotChooseTheTokens) {
  const auto& system = TinySystem::instance();
  std::vector<nlohmann::json> tokens;
  for (const std::string size : {"7", "32", "auto"}) {
    run_well("sample-and-rerank", sample_arguments(system, "batch-" + size,
                                                   {"--caption", "red apple", "--candidates", "100", "--batch-size",
                                                    size, "--save-tokens"}));
    tokens.push_back(json_of(system / ("batch-" + size) / "caption-0000/tokens.json")["tokens"]);
  }
  for (size_t other : {size_t{1}, size_t{2}}) {
    int64_t equal = 0;
    for (size_t i = 0; i < 100; ++i) equal += tokens[0][i] == tokens[other][i];
    EXPECT_GE(equal, 99) << "of 100";
  }
}

TEST(Pipeline, ACaptionsFileAndABundleDoTheSame) {
  const auto& system = TinySystem::instance();
  const std::string captions = system.file("captions.txt", "red apple\r\n\na blue square\n");
  run_well("sample-and-rerank", {"--run", system.path().string(), "--captions", captions, "--candidates", "6", "--keep",
                                 "4", "--threads", "1", "--precision", "f32", "--out", system.at("bundle")});
  run_well("sample-and-rerank", sample_arguments(system, "flags", kTwoCaptions));
  EXPECT_EQ(json_of(system / "bundle/scores.json")["captions"], json_of(system / "flags/scores.json")["captions"]);
}

TEST(Pipeline, AnImagePromptKeepsItsRows) {
  const auto& system = TinySystem::instance();
  const std::string picture = system.file("prompt.png", coloured_pictures(3)[4].second);
  run_well("reconstruct", {picture, "--dvae", system.at("dvae"), "--precision", "f32", "--save-tokens", "--out",
                           system.at("prompt-tokens")});
  const auto grid = json_of(system / "prompt-tokens/prompt.tokens.json");
  run_well("sample-and-rerank", sample_arguments(system, "prompted",
                                                 {"--caption", "red apple", "--candidates", "4", "--image-prompt",
                                                  picture, "--prompt-rows", "2", "--save-tokens"}));
  for (const auto& row : json_of(system / "prompted/caption-0000/tokens.json")["tokens"]) {
    for (size_t i = 0; i < 8; ++i) EXPECT_EQ(row[i], grid[i / 4][i % 4]);
  }
}

TEST(Pipeline, PicturesGoThroughTheDvae) {
  const auto& system = TinySystem::instance();
  const auto pictures = coloured_pictures(2);
  const std::string first = system.file("one.png", pictures[0].second),
                    second = system.file("two.png", pictures[2].second);
  const auto outcome = run_well(
      "reconstruct", {first, second, "--dvae", system.at("dvae"), "--save-tokens", "--out", system.at("seen")});
  EXPECT_THAT(outcome.out, AllOf(HasSubstr("one.png: PSNR "), HasSubstr("mean of 2: PSNR ")));
  EXPECT_EQ(data::decode_picture(read_file(system / "seen/one.png")).sizes(), (std::vector<int64_t>{16, 36, 3}));
  EXPECT_EQ(json_of(system / "seen/two.tokens.json").size(), 4U);
  EXPECT_TRUE(fs::exists(system / "seen/contact-sheet.png"));
  EXPECT_EQ(json_of(system / "seen/reconstruction.json")["pictures"].size(), 2U);

  const std::string text = system.file("text.png", "no picture at all");
  const auto broken = run("reconstruct", {first, text, "--dvae", system.at("dvae"), "--out", system.at("unseen")});
  EXPECT_EQ(broken.exit_code, 1);
  EXPECT_THAT(broken.err, HasSubstr("text.png"));
  EXPECT_FALSE(fs::exists(system / "unseen"));
  for (const std::string size : {"--size=10", "--size=-4"}) {
    EXPECT_EQ(run("reconstruct", {first, "--dvae", system.at("dvae"), size, "--out", system.at("unseen")}).exit_code,
              2);
  }
  const auto small =
      run("reconstruct", {first, "--dvae", system.at("dvae"), "--size=20", "--out", system.at("unseen")});
  EXPECT_EQ(small.exit_code, 1);
  EXPECT_THAT(small.err, HasSubstr("one.png: expected a shorter side of at least 20 pixels, got 16 x 16"));
  EXPECT_EQ(run("reconstruct", {first, first, "--dvae", system.at("dvae"), "--out", system.at("unseen")}).exit_code, 2);
  EXPECT_FALSE(fs::exists(system / "unseen"));
  const auto lost = run("score-images", {system.at("lost.png"), "--clip", system.at("clip"), "--caption", "x"});
  EXPECT_EQ(lost.exit_code, 2);
  EXPECT_THAT(lost.err, HasSubstr("lost.png"));
}

TEST(Pipeline, CheckpointsCanBeLookedAt) {
  const auto& system = TinySystem::instance();
  const auto prior = run_well("inspect-checkpoint", {system.at("prior"), "--verify", "--tokenize", "Red apple"});
  const auto checkpoint = storage::load_checkpoint(storage::resolve_checkpoint(system / "prior"));
  EXPECT_THAT(prior.out, AllOf(HasSubstr("kind: prior"), HasSubstr("step: 12"), HasSubstr("all files are whole"),
                               HasSubstr("identity of dvae: " + checkpoint.identities.at("dvae")),
                               HasSubstr("normalised: red apple\n"),
                               HasSubstr(" tokens of the 15 that the model has slots for\npieces: ")));
  EXPECT_THAT(prior.out, Not(HasSubstr("image_head.weight")));
  EXPECT_THAT(run_well("inspect-checkpoint", {system.at("prior/checkpoints/latest"), "--tensors"}).out,
              HasSubstr("image_head.weight [16, 16]"));
  const auto dvae = run("inspect-checkpoint", {system.at("dvae"), "--tokenize", "red"});
  EXPECT_EQ(dvae.exit_code, 2);
  EXPECT_THAT(dvae.err, HasSubstr("no tokenizer"));
}

}  // namespace
}  // namespace dalle::integration
