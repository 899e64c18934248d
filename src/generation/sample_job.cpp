#include "dalle/generation/sample_job.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>

#include "clip_scoring.h"
#include "dalle/cli/command.h"
#include "dalle/cli/status_line.h"
#include "dalle/core/device.h"
#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/logging.h"
#include "dalle/core/str.h"
#include "dalle/data/image_codec.h"
#include "dalle/data/transforms.h"
#include "dalle/generation/contact_sheet.h"
#include "dalle/generation/gallery_html.h"
#include "dalle/generation/picture_writer.h"
#include "dalle/generation/scores_json.h"
#include "dalle/generation/token_sampler.h"
#include "sample_models.h"

namespace dalle::generation {
namespace {

namespace fs = std::filesystem;

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Times {
  double load = 0, sample = 0, decode = 0, rerank = 0, write = 0;
};

/// Everything about one caption's candidates.
struct Drawn {
  std::string caption;
  Tensor tokens_NI;         // i64
  Tensor pictures_N3HW;     // f32 in [0, 1], on the CPU
  Tensor log_likelihood_N;  // f64
  Tensor scores_N;          // f64
  std::vector<int64_t> best_first;
};

std::vector<std::string> wanted_captions(const SampleOptions& options) {
  std::vector<std::string> captions = options.caption;
  if (options.captions.empty()) return captions;
  std::istringstream lines(read_file(options.captions));
  for (std::string line; std::getline(lines, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (!line.empty()) captions.push_back(line);
  }
  if (captions.empty()) throw ConfigError(options.captions.string() + ": no caption in the file");
  return captions;
}

// Image tokens of the prompt picture's upper rows.
Tensor prompt_tokens(const SampleModels& models, const SampleOptions& options) {
  if (options.image_prompt.empty()) return {};
  const auto& config = models.dvae.model->config();
  if (options.prompt_rows >= config.grid_size()) {
    throw ConfigError(
        Problem{"--prompt-rows", str("fewer rows than the grid's ", config.grid_size()), str(options.prompt_rows), ""});
  }
  const Tensor decoded = data::decode_picture(read_file(options.image_prompt));
  const data::TransformOptions transform{
      .image_size = config.image_size, .filter = data::ResizeFilter::kLanczos, .upscale_small = true};
  const Tensor pixels = data::transform_picture(decoded, transform, {}).to(models.device).to(at::kFloat).div_(255);
  return models.dvae.model->encode(pixels.unsqueeze(0))
      .flatten(1)[0]
      .slice(0, 0, options.prompt_rows * config.grid_size());
}

class SampleJob {
 public:
  explicit SampleJob(const SampleOptions& options)
      : options_(options), captions_(wanted_captions(options)), models_(load_sample_models(options)) {
    times_.load = now_seconds() - started_;
    batch_size_ = plan_batch_size(models_, options_);
    prompt_ = prompt_tokens(models_, options_);
    const int64_t slots = models_.prior.model->config().image_context();
    const auto batches = (options_.candidates + batch_size_ - 1) / batch_size_;
    status_.emplace("sampling", "tokens", static_cast<int64_t>(captions_.size()) * batches * slots, 0);
  }

  int run() {
    const c10::NoGradGuard no_grad;
    fs::create_directories(options_.out);
    log_info(str(captions_.size(), " captions, ", options_.candidates, " candidates each, ", batch_size_,
                 " at a time, on ", describe_device(models_.device)));
    ScoresReport report = empty_report();
    Gallery gallery{.title = "sample-and-rerank", .settings = {}, .captions = {}};
    std::vector<SheetCell> overview;
    for (size_t i = 0; i < captions_.size(); ++i) {
      Drawn drawn = draw(captions_[i]);
      score(drawn);
      const double begin = now_seconds();
      write_caption(i, drawn, report, gallery);
      overview.push_back({.picture = drawn.pictures_N3HW[drawn.best_first[0]], .label = drawn.caption});
      times_.write += now_seconds() - begin;
    }
    status_->finish();
    finish(report, gallery, overview);
    return cli::kDone;
  }

 private:
  Drawn draw(const std::string& caption) {
    Drawn drawn{.caption = caption};
    const auto encoded = models_.captions->encode(caption);
    if (encoded.truncated)
      log_warning(str("the caption is longer than ", models_.captions->length(), " tokens and was cut: ", caption));
    const CaptionPrompt prompt{caption, at::tensor(encoded.ids, at::kLong), prompt_};
    const SamplingOptions sampling{.filter = {options_.temperature, options_.top_k, options_.top_p},
                                   .guidance = options_.guidance,
                                   .seed = static_cast<uint64_t>(options_.seed)};
    const int64_t grid = models_.dvae.model->config().grid_size();
    std::vector<Tensor> tokens, pictures, likelihoods;
    for (int64_t first = 0; first < options_.candidates; first += batch_size_) {
      std::vector<int64_t> numbers(static_cast<size_t>(std::min(batch_size_, options_.candidates - first)));
      std::iota(numbers.begin(), numbers.end(), first);
      const double begin = now_seconds();
      const auto batch = models_.sampler->draw(
          prompt, numbers, sampling, [&](int64_t) { return show_progress(static_cast<int64_t>(numbers.size())); });
      const double sampled = now_seconds();
      const auto count = static_cast<int64_t>(numbers.size());
      pictures.push_back(
          models_.dvae.model->decode(batch.tokens_BI.view({count, grid, grid})).to(at::kCPU).contiguous());
      tokens.push_back(batch.tokens_BI.to(at::kCPU));
      likelihoods.push_back(batch.log_likelihood_B.to(at::kCPU));
      times_.sample += sampled - begin;
      times_.decode += now_seconds() - sampled;
    }
    drawn.tokens_NI = at::cat(tokens);
    drawn.pictures_N3HW = at::cat(pictures);
    drawn.log_likelihood_N = at::cat(likelihoods);
    return drawn;
  }

  bool show_progress(int64_t batch) {
    ++slots_done_;
    tokens_done_ += batch;
    if (slots_done_ % 16 == 0) {
      const double drawing = now_seconds() - started_ - times_.load;
      status_->update({.step = slots_done_, .items_per_second = static_cast<double>(tokens_done_) / drawing});
    }
    return true;
  }

  void score(Drawn& drawn) {
    const double begin = now_seconds();
    if (options_.rerank == RerankBy::kClip) {
      const auto& clip = *models_.clip->model;
      const Tensor text = caption_features(clip, *models_.clip_tokenizer, {drawn.caption});
      const Tensor pictures = picture_features(clip, drawn.pictures_N3HW.unbind(0));
      drawn.scores_N = at::matmul(pictures, text.t()).squeeze(1).to(at::kDouble);
    } else {
      drawn.scores_N =
          options_.rerank == RerankBy::kLikelihood ? drawn.log_likelihood_N : at::zeros_like(drawn.log_likelihood_N);
    }
    drawn.best_first.resize(static_cast<size_t>(options_.candidates));
    std::iota(drawn.best_first.begin(), drawn.best_first.end(), int64_t{0});
    const double* scores = drawn.scores_N.data_ptr<double>();
    std::stable_sort(drawn.best_first.begin(), drawn.best_first.end(),
                     [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
    times_.rerank += now_seconds() - begin;
  }

  void write_caption(size_t index, const Drawn& drawn, ScoresReport& report, Gallery& gallery) {
    char name[32];
    std::snprintf(name, sizeof name, "caption-%04zu", index);
    fs::create_directories(options_.out / name);
    CaptionScores scores{.caption = drawn.caption, .candidates = {}, .contact_sheet = str(name, "/contact-sheet.png")};
    CaptionResult view{.caption = drawn.caption, .candidates = {}, .contact_sheet = scores.contact_sheet};
    std::vector<SheetCell> cells;
    for (size_t rank = 0; rank < drawn.best_first.size(); ++rank) {
      const int64_t number = drawn.best_first[rank];
      const double value = drawn.scores_N[number].item<double>();
      const bool kept = static_cast<int64_t>(rank) < options_.keep;
      char file[64];
      std::snprintf(file, sizeof file, "%s/candidate-%04lld.png", name, static_cast<long long>(number));
      write_png(options_.out / file, drawn.pictures_N3HW[number]);
      scores.candidates.push_back({static_cast<int64_t>(rank) + 1,
                                   number,
                                   value,
                                   kept,
                                   file,
                                   {{"log_likelihood", drawn.log_likelihood_N[number].item<double>()}}});
      view.candidates.push_back({file, value, static_cast<int64_t>(rank) + 1, number, kept});
      if (!kept) continue;
      char label[64];
      std::snprintf(label, sizeof label, options_.rerank == RerankBy::kNone ? "#%lld" : "#%lld  %.3f",
                    static_cast<long long>(number), value);
      cells.push_back({.picture = drawn.pictures_N3HW[number], .label = label});
    }
    const SheetOptions sheet{
        .title = drawn.caption,
        .subtitle = str("best ", cells.size(), " of ", options_.candidates, ", by ", enum_name(options_.rerank))};
    write_png(options_.out / scores.contact_sheet, contact_sheet(cells, sheet));
    if (options_.save_tokens) write_tokens(options_.out / name / "tokens.json", drawn);
    report.captions.push_back(std::move(scores));
    gallery.captions.push_back(std::move(view));
  }

  void write_tokens(const fs::path& path, const Drawn& drawn) const {
    nlohmann::ordered_json json{{"caption", drawn.caption}, {"grid_size", models_.dvae.model->config().grid_size()}};
    json["tokens"] = nlohmann::ordered_json::array();
    for (int64_t n = 0; n < drawn.tokens_NI.size(0); ++n) {
      const int64_t* row = drawn.tokens_NI[n].data_ptr<int64_t>();
      json["tokens"].push_back(std::vector<int64_t>(row, row + drawn.tokens_NI.size(1)));
    }
    write_file(path, json.dump() + "\n");
  }

  ScoresReport empty_report() const {
    ScoresReport report;
    report.command = "sample-and-rerank";
    report.created = utc_time();
    report.seed = static_cast<uint64_t>(options_.seed);
    report.score_name = enum_name(options_.rerank);
    report.settings = {{"candidates", options_.candidates},
                       {"keep", options_.keep},
                       {"temperature", options_.temperature},
                       {"top_k", options_.top_k},
                       {"top_p", options_.top_p},
                       {"guidance", options_.guidance},
                       {"precision", std::string(enum_name(options_.precision))},
                       {"batch_size", batch_size_}};
    if (!options_.image_prompt.empty()) {
      report.settings.emplace_back("image_prompt", options_.image_prompt.string());
      report.settings.emplace_back("prompt_rows", options_.prompt_rows);
    }
    report.models = models_.used;
    return report;
  }

  void finish(ScoresReport& report, Gallery& gallery, const std::vector<SheetCell>& overview) {
    const double begin = now_seconds();
    const std::string subtitle =
        str("for each caption the best of ", options_.candidates, " by ", report.score_name, ", seed ", options_.seed);
    write_png(options_.out / "contact-sheet.png",
              contact_sheet(overview, {.title = "sample-and-rerank", .subtitle = subtitle}));
    gallery.settings.emplace_back("seed", std::to_string(options_.seed));
    gallery.settings.emplace_back("ordered by", report.score_name);
    for (const auto& [name, value] : report.settings) {
      gallery.settings.emplace_back(name,
                                    std::visit([](const auto& held) { return str(std::boolalpha, held); }, value));
    }
    for (const auto& model : report.models)
      gallery.settings.emplace_back(model.role, str(model.path, " (", model.identity, ")"));
    write_gallery(options_.out, gallery);
    times_.write += now_seconds() - begin;
    report.times_seconds = {{"load", times_.load},
                            {"sample", times_.sample},
                            {"decode", times_.decode},
                            {"rerank", times_.rerank},
                            {"write", times_.write}};
    write_scores(options_.out, report);
    const double tokens = static_cast<double>(tokens_done_);
    log_info(str("drawn in ", cli::format_duration(times_.sample), " (",
                 cli::format_rate(tokens / std::max(1e-9, times_.sample)), " tokens/s); open ",
                 (options_.out / "index.html").string()));
  }

  SampleOptions options_;
  double started_ = now_seconds();
  std::vector<std::string> captions_;
  SampleModels models_;
  Times times_;
  int64_t batch_size_ = 1;
  int64_t slots_done_ = 0;
  int64_t tokens_done_ = 0;
  Tensor prompt_;
  std::optional<cli::StatusLine> status_;
};

}  // namespace

void SampleOptions::validate(const std::string&) const {
  if (out.empty()) throw ConfigError("sample-and-rerank: expected --out DIR, a folder for the results");
  if (fs::exists(out) && !(fs::is_directory(out) && fs::is_empty(out))) {
    throw ConfigError(Problem{"--out " + out.string(), "a folder that does not exist yet or is empty",
                              "one with files in it", "nothing is ever overwritten: name another folder"});
  }
  if (caption.empty() && captions.empty())
    throw ConfigError("sample-and-rerank: expected --caption TEXT or --captions FILE");
  if (!captions.empty() && !fs::is_regular_file(captions))
    throw ConfigError("--captions " + captions.string() + ": no such file");
  if (run.empty() && (prior.empty() || dvae.empty())) {
    throw ConfigError("sample-and-rerank: expected --prior CKPT and --dvae CKPT, or --run DIR");
  }
  if (!image_prompt.empty() && !fs::is_regular_file(image_prompt)) {
    throw ConfigError("--image-prompt " + image_prompt.string() + ": no such file");
  }
}

int run_sample_job(const SampleOptions& options) {
  set_num_threads(options.threads);
  return SampleJob(options).run();
}

}  // namespace dalle::generation
