#include "dalle/training/reranking_report.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>

#include "dalle/core/device.h"
#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/str.h"
#include "dalle/data/dataset.h"
#include "dalle/data/image_codec.h"
#include "dalle/data/loader.h"
#include "dalle/evaluation/reranking_gain.h"
#include "dalle/evaluation/retrieval.h"
#include "dalle/generation/clip_scoring.h"
#include "dalle/models/load.h"

namespace dalle::training {
namespace {

using nlohmann::json;
using Judged = std::vector<std::vector<double>>;  // [caption][place that the reranker gave]

struct DrawnCaption {
  std::string text;
  std::vector<Tensor> pictures;  // u8 [H, W, 3], the reranker's best first
};

struct SampleRun {
  uint64_t seed = 0;
  std::string ordered_by;
  std::string reranker;  // identity of its CLIP; "" where it had none
  std::vector<DrawnCaption> captions;
};

SampleRun read_samples(const std::filesystem::path& folder) {
  const auto path = folder / "scores.json";
  const json scores = json::parse(read_file(path), nullptr, /*allow_exceptions=*/false);
  if (!scores.is_object() || scores.value("format", "") != "dalle.cpp scores") {
    throw DataError(Problem{path.string(), "scores of sample-and-rerank", "another file", "see docs/scores_format.md"});
  }
  SampleRun run{.seed = scores.at("seed"), .ordered_by = scores.at("score"), .reranker = "", .captions = {}};
  for (const auto& model : scores.at("models")) {
    if (model.at("role") == "clip") run.reranker = model.at("identity");
  }
  for (const auto& caption : scores.at("captions")) {
    auto& drawn = run.captions.emplace_back(DrawnCaption{.text = caption.at("caption"), .pictures = {}});
    for (const auto& candidate : caption.at("candidates")) {  // written by rank
      drawn.pictures.push_back(data::decode_picture(read_file(folder / candidate.at("file").get<std::string>())));
    }
  }
  return run;
}

/// Knows nothing of CLIP: a picture scores 1 where its nearest training picture has its caption.
class PixelJudge {
 public:
  PixelJudge(const std::filesystem::path& shard, int64_t size) : dataset_({data::SourceConfig{.path = shard}}) {
    data::DataConfig plain;
    plain.augmentation = data::Augmentation::kNone;
    const auto batch = data::load_range(dataset_, plain, size, 0, dataset_.size());
    originals_ = batch.images.to(at::kFloat).div_(255);
    samples_ = batch.indices;
    captions_ = dataset_.all_captions();
    std::sort(captions_.begin(), captions_.end());
  }

  std::vector<double> judge(const DrawnCaption& drawn) const {
    if (!std::binary_search(captions_.begin(), captions_.end(), drawn.text)) {
      throw DataError("no training picture has the caption '" + drawn.text + "'");
    }
    const Tensor pictures = at::stack(drawn.pictures).permute({0, 3, 1, 2}).to(at::kFloat).div_(255);
    const Tensor nearest = evaluation::nearest_original(pictures, originals_);
    std::vector<double> scores;
    for (int64_t i = 0; i < nearest.size(0); ++i) {
      const auto& own = dataset_.captions(samples_.at(static_cast<size_t>(nearest[i].item<int64_t>())));
      scores.push_back(std::find(own.begin(), own.end(), drawn.text) != own.end() ? 1 : 0);
    }
    return scores;
  }

 private:
  data::Dataset dataset_;
  Tensor originals_;              // f32 [N, 3, S, S]
  std::vector<int64_t> samples_;  // N, their indices in the data set
  std::vector<std::string> captions_;
};

/// The cosine of caption and picture by another CLIP.
class ClipJudge {
 public:
  explicit ClipJudge(const RerankingReportOptions& options)
      : clip_(models::load_clip(options.judge, {select_device(options.device), options.precision})),
        tokenizer_(models::clip_tokenizer(clip_)) {}

  const models::Loaded<models::Clip>& clip() const { return clip_; }
  std::vector<double> judge(const DrawnCaption& drawn) const {
    const Tensor text = generation::caption_features(*clip_.model, tokenizer_, {drawn.text});
    const Tensor pictures = generation::picture_features(*clip_.model, drawn.pictures);
    const Tensor cosines = at::mv(pictures, text.squeeze(0)).to(at::kDouble).contiguous();
    return {cosines.const_data_ptr<double>(), cosines.const_data_ptr<double>() + cosines.numel()};
  }

 private:
  models::Loaded<models::Clip> clip_;
  text::TextTokenizer tokenizer_;
};

template <class Judge>
Judged judge_all(const SampleRun& run, const Judge& judge) {
  Judged judged;
  for (const auto& drawn : run.captions) judged.push_back(judge.judge(drawn));
  return judged;
}

class Table {
 public:
  void add(const SampleRun& run, const char* judge, const Judged& judged) {
    const auto result = evaluation::reranking_gain(judged);
    const bool helps = result.is_significant();
    line("%-5s %-11s %-34s %8zu %10zu %8.3f %8.3f %8.4f %8.4f %6.1f  %s\n", std::to_string(run.seed).c_str(),
         run.ordered_by.c_str(), judge, judged.size(), judged.front().size(), result.best, result.random, result.gain,
         result.standard_error, result.gain / result.standard_error, helps ? "ok" : "MISSED");
    report_.all_help = report_.all_help && helps;
  }
  const RerankingReport& report() const { return report_; }

 private:
  template <class... Values>
  void line(const char* format, Values... values) {
    char text[256];
    std::snprintf(text, sizeof text, format, values...);
    report_.table += text;
  }

  RerankingReport report_{
      "seed  ordered by  judge                              captions candidates     best   random     gain     s.e.  "
      "ratio\n",
      true};
};

}  // namespace

void RerankingReportOptions::validate(const std::string&) const {
  if (samples.empty()) throw ConfigError("reranking-report: expected --samples DIR, a folder of sample-and-rerank");
  if (data.empty()) throw ConfigError("reranking-report: expected --data SHARD, with the pictures of the captions");
  for (const auto& folder : samples) {
    if (std::filesystem::exists(folder / "scores.json")) continue;
    throw ConfigError(Problem{"--samples " + folder.string(), "the folder of a finished sample-and-rerank run",
                              "one without scores.json",
                              "the same sample-and-rerank command goes on where it stopped"});
  }
}

RerankingReport make_reranking_report(const RerankingReportOptions& options) {
  const c10::NoGradGuard no_grad;
  set_num_threads(options.threads);
  std::optional<ClipJudge> other;
  if (!options.judge.empty()) other.emplace(options);
  std::optional<PixelJudge> pixels;
  Table table;
  for (const auto& folder : options.samples) {
    const SampleRun run = read_samples(folder);
    if (other && other->clip().identity == run.reranker) {
      throw ConfigError(Problem{"--judge " + other->clip().path.string(), "another CLIP than the reranker",
                                "the one that ordered " + folder.string(), "train one of another seed"});
    }
    if (!pixels) pixels.emplace(options.data, run.captions.at(0).pictures.at(0).size(0));
    table.add(run, "nearest training picture is its own", judge_all(run, *pixels));
    if (other) table.add(run, "cosine of another CLIP", judge_all(run, *other));
  }
  return table.report();
}

}  // namespace dalle::training
