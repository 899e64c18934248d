#include "dalle/generation/sample_job.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <optional>
#include <sstream>
#include <thread>

#include "dalle/cli/command.h"
#include "dalle/cli/status_line.h"
#include "dalle/core/device.h"
#include "dalle/core/dtype_name.h"
#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/logging.h"
#include "dalle/core/signals.h"
#include "dalle/core/str.h"
#include "dalle/distributed/agreement.h"
#include "dalle/distributed/join.h"
#include "dalle/generation/batches.h"
#include "dalle/generation/candidate_store.h"
#include "dalle/generation/caption_list.h"
#include "dalle/generation/clip_scoring.h"
#include "dalle/generation/contact_sheet.h"
#include "dalle/generation/picture_writer.h"
#include "dalle/generation/token_sampler.h"
#include "picture_files.h"
#include "sample_folder.h"
#include "sample_models.h"
#include "sample_report.h"
#include "sample_run.h"

namespace dalle::generation {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kDefaultKeep = 32;
constexpr int kFilesSeconds = 30;       // that files of other ranks may take to be seen
constexpr double kGalleryInterval = 5;  // seconds between two versions of index.html while a run is under way
constexpr double kGalleryShare = 20;    // or so many times as long as the last took to write
constexpr size_t kMostShown = 256;      // captions of the overview

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Times {
  double load = 0, sample = 0, decode = 0, rerank = 0, write = 0;
};

std::string folder_name(size_t caption) {
  char name[32];
  std::snprintf(name, sizeof name, "caption-%04zu", caption);
  return name;
}

class SampleJob {
 public:
  SampleJob(const SampleOptions& options, const distributed::Ranks& ranks)
      : options_(options),
        ranks_(*ranks.communicator),
        captions_(read_captions(options.caption, options.captions)),
        models_(load_sample_models(options, ranks.device)),
        keep_(std::min(options.keep.value_or(kDefaultKeep), options.candidates)),
        slots_(models_.prior.model->config().image_context()) {
    times_.load = now_seconds() - started_;
    const int64_t share = (options.candidates + ranks_.world_size() - 1) / ranks_.world_size();
    batch_size_ = plan_batch_size(models_, options_, ranks.on_this_machine, share);
    prompt_ = prompt_tokens(models_, options_);
    open_folder();
  }

  int run() {
    const c10::NoGradGuard no_grad;
    const StopSignals signals;
    open_captions();
    bool is_stopped = false;
    try {
      for (size_t i = 0; i < captions_.size(); ++i) draw(i);
    } catch (const Interrupted&) {
      is_stopped = true;
    }
    if (status_) status_->finish();
    is_stopped = meet(is_stopped);
    if (is_first()) {
      refresh();
      if (!is_stopped) {
        await_files();
        finish();
      } else {
        show_gallery();
        log_info(str("stopped by a signal; ", num_finished(), " of ", num_wanted(), " candidates are in ",
                     folder_->path().string(), "; the same command goes on from there"));
      }
    }
    ranks_.await(0);
    return is_stopped ? cli::kStopped : cli::kDone;
  }

 private:
  struct Caption {
    std::string text, folder;
    CandidateStore store;
    std::vector<int64_t> share;  // numbers that are this rank's to draw
    bool is_done = false;        // its sheet is there
  };

  bool is_first() const { return ranks_.rank() == 0; }

  /// By the first rank, once all have said that they would draw the same.
  void open_folder() {
    const RunDescription run = describe_run(options_, captions_, models_, prompt_);
    require_same_description(ranks_, run);
    distributed::on_first_rank(ranks_, [&] {
      folder_.emplace(options_.out, run);
      return std::string();
    });
    if (!folder_) folder_ = SampleFolder::of_first_rank(options_.out);
  }

  /// What is missing of each caption, as the first rank sees it, is shared out: neighbouring numbers to each rank, and what
  /// does not divide to another one with each caption.
  void open_captions() {
    const int64_t size = ranks_.world_size();
    for (size_t i = 0; i < captions_.size(); ++i) {
      const std::string folder = folder_name(i);
      opened_.emplace_back(captions_[i], folder, CandidateStore(*folder_ / folder, ranks_.rank()));
    }
    std::istringstream lists(distributed::on_first_rank(ranks_, [&] { return missing_numbers(); }));
    for (size_t i = 0; i < opened_.size(); ++i) {
      std::string line;
      std::getline(lists, line);
      std::istringstream numbers(line);
      const std::vector<int64_t> missing{std::istream_iterator<int64_t>(numbers), {}};
      const auto count = static_cast<int64_t>(missing.size()), place = (ranks_.rank() + static_cast<int64_t>(i)) % size;
      opened_[i].share.assign(missing.begin() + count * place / size, missing.begin() + count * (place + 1) / size);
      num_own_ += static_cast<int64_t>(opened_[i].share.size());
    }
    const std::string ranks = size > 1 ? str(" on each of ", size, " ranks") : "";
    log_info(str(captions_.size(), captions_.size() == 1 ? " caption, " : " captions, ", options_.candidates,
                 " candidates each, ", batch_size_, " at a time", ranks, ", on ", describe_device(models_.device)));
    if (folder_->goes_on()) {
      log_info(
          str("going on with an interrupted run: ", num_finished(), " of ", num_wanted(), " candidates are there"));
    }
    former_ = size > 1 ? 0 : num_finished();
    if (is_first()) {
      status_.emplace(size > 1 ? str("sampling, this rank's share of ", size) : "sampling", "tokens",
                      (former_ + num_own_) * slots_, former_ * slots_);
    }
    ranks_.note("drawing", distributed::Pace::kOpenEnded);
  }

  /// A line for each caption.
  std::string missing_numbers() const {
    std::string lists;
    for (const auto& caption : opened_) {
      for (const int64_t number : caption.store.missing(options_.candidates)) lists += str(number, " ");
      lists += "\n";
    }
    return lists;
  }

  /// Waits until every rank is done with its share, whatever time that takes. Whether any was stopped by a signal.
  bool meet(bool is_stopped) {
    for (int rank = 0; rank < ranks_.world_size(); ++rank) ranks_.await(rank);
    Tensor sums = at::tensor({is_stopped ? 1.0 : 0.0, static_cast<double>(tokens_done_)}, at::kDouble);
    ranks_.all_reduce_sum(sums);
    tokens_of_all_ = sums[1].item<double>();
    times_.sample = ranks_.all_gather(at::tensor({times_.sample}, at::kDouble)).max().item<double>();  // the longest
    return sums[0].item<double>() > 0;
  }

  void refresh() {
    if (ranks_.world_size() == 1) return;
    for (auto& caption : opened_) {
      if (!is_whole(caption)) caption.store.refresh();
    }
  }

  bool is_whole(const Caption& caption) const {
    return static_cast<int64_t>(caption.store.finished().size()) == options_.candidates;
  }

  /// What other machines wrote may take a moment to be seen.
  void await_files() {
    for (int seconds = 0; num_finished() < num_wanted() && seconds < kFilesSeconds; ++seconds) {
      std::this_thread::sleep_for(std::chrono::seconds(1));
      refresh();
    }
    if (num_finished() == num_wanted()) return;
    throw FileError(
        Problem{.place = folder_->path().string(),
                .expected = str(num_wanted(), " candidates of all ranks"),
                .got = std::to_string(num_finished()),
                .hint = "ranks on several machines need a file system that all of them see; the same command goes "
                        "on from what is there"});
  }

  int64_t num_wanted() const { return static_cast<int64_t>(captions_.size()) * options_.candidates; }
  int64_t num_finished() const {
    int64_t count = 0;
    for (const auto& caption : opened_) count += static_cast<int64_t>(caption.store.finished().size());
    return count;
  }

  void draw(size_t index) {
    Caption& caption = opened_[index];
    const auto encoded = models_.captions->encode(caption.text);
    if (encoded.truncated && is_first() && !is_whole(caption)) {
      log_warning(str("a caption is longer than ", models_.captions->length(),
                      " tokens and was cut: ", shortened(caption.text)));
    }
    if (!caption.share.empty()) {
      const CaptionPrompt prompt{caption.text, at::tensor(encoded.ids, at::kLong), prompt_};
      const Tensor features = options_.rerank == RerankBy::kClip
                                  ? caption_features(*models_.clip->model, *models_.clip_tokenizer, {caption.text})
                                  : Tensor();
      batch_size_ = in_batches(caption.share, batch_size_, [&](std::span<const int64_t> numbers) {
        const int64_t before = tokens_done_;
        try {
          draw_batch(caption, prompt, features, numbers);
        } catch (const c10::OutOfMemoryError&) {  // they are drawn again, fewer at a time
          tokens_done_ = before;
          throw;
        }
      });
    }
    write_sheet(caption);
  }

  /// Of a caption whose candidates are all there.
  void write_sheet(Caption& caption) {
    if (!is_first() || !is_whole(caption) || caption.is_done) return;
    const double begin = now_seconds();
    const auto order = best_first(caption.store.finished());
    write_caption_sheet(*folder_ / (caption.folder + "/contact-sheet.png"), caption.text, caption.store, order, keep_,
                        options_.rerank);
    if (options_.save_tokens) {
      write_tokens(*folder_ / (caption.folder + "/tokens.json"), caption.text, models_.dvae.model->config().grid_size(),
                   caption.store.with_tokens());
    }
    warn_of_no_numbers(caption);
    caption.is_done = true;
    times_.write += now_seconds() - begin;
  }

  static void warn_of_no_numbers(const Caption& caption) {
    const auto& all = caption.store.finished();
    const auto count = std::count_if(all.begin(), all.end(), [](const auto& each) { return std::isnan(each.score); });
    if (count == 0) return;
    log_warning(str(count, " of ", all.size(),
                    " candidates have a score that is no number and come last: is a model damaged? ",
                    shortened(caption.text)));
  }

  void draw_batch(Caption& caption, const CaptionPrompt& prompt, const Tensor& features,
                  std::span<const int64_t> numbers) {
    const SamplingOptions sampling{.filter = {options_.temperature, options_.top_k, options_.top_p},
                                   .guidance = options_.guidance,
                                   .seed = static_cast<uint64_t>(options_.seed)};
    const auto count = static_cast<int64_t>(numbers.size());
    const int64_t grid = models_.dvae.model->config().grid_size();
    const int64_t before = tokens_done_;
    double begin = now_seconds();
    const auto lap = [&begin](double& total) {
      const double now = now_seconds();
      total += now - begin;
      begin = now;
    };
    const auto drawn = models_.sampler->draw(prompt, numbers, sampling, [&](int64_t slots_done) {
      show_progress(before + slots_done * count);
      return !stop_requested();
    });
    lap(times_.sample);
    const Tensor pictures = decode(drawn.tokens_BI.view({count, grid, grid}));
    lap(times_.decode);
    const Tensor scores = score(features, pictures, drawn.log_likelihood_B).to(at::kCPU);
    lap(times_.rerank);
    const Tensor tokens = drawn.tokens_BI.to(at::kCPU).contiguous(), likelihoods = drawn.log_likelihood_B.to(at::kCPU);
    std::vector<FinishedCandidate> batch;
    for (int64_t i = 0; i < count; ++i) {
      const auto* row = tokens.const_data_ptr<int64_t>() + i * slots_;
      batch.push_back({numbers[static_cast<size_t>(i)], scores[i].item<double>(), likelihoods[i].item<double>(),
                       std::vector<int64_t>(row, row + slots_)});
    }
    caption.store.add(batch, pictures);
    if (is_first() && now_seconds() - shown_ > std::max(kGalleryInterval, kGalleryShare * gallery_seconds_)) {
      refresh();
      show_gallery();
    }
    lap(times_.write);
  }

  // Some at a time: the dVAE's decoder takes more memory for a picture than the prior.
  Tensor decode(const Tensor& codes_BGG) const {
    std::vector<Tensor> pictures;
    for (const Tensor& chunk : codes_BGG.split(kDecodeTogether)) {
      pictures.push_back(models_.dvae.model->decode(chunk).to(at::kCPU));
    }
    return at::cat(pictures);
  }

  // f64 [B]
  Tensor score(const Tensor& caption_features, const Tensor& pictures, const Tensor& log_likelihood) const {
    switch (options_.rerank) {
      case RerankBy::kClip:
        return at::mv(picture_features(*models_.clip->model, pictures.unbind(0)), caption_features.squeeze(0))
            .to(at::kDouble);
      case RerankBy::kLikelihood:
        return log_likelihood;
      case RerankBy::kNone:
        break;
    }
    return at::zeros_like(log_likelihood);
  }

  void show_progress(int64_t tokens) {
    tokens_done_ = tokens;
    if (!status_) return;
    const double drawing = now_seconds() - started_ - times_.load;
    status_->update({.step = former_ * slots_ + tokens_done_,
                     .items_per_second = static_cast<double>(tokens_done_) / std::max(1e-9, drawing)});
  }

  ScoresReport report() const {
    ScoresReport report;
    report.command = "sample-and-rerank";
    report.created = utc_time();
    report.seed = static_cast<uint64_t>(options_.seed);
    report.score_name = enum_name(options_.rerank);
    report.settings = {
        {"candidates", options_.candidates},
        {"keep", keep_},
        {"temperature", options_.temperature},
        {"top_k", options_.top_k},
        {"top_p", options_.top_p},
        {"guidance", options_.guidance},
        {"rerank", std::string(enum_name(options_.rerank))},
        {"raw_weights", options_.raw_weights},
        {"save_tokens", options_.save_tokens},
        {"precision", str(enum_name(options_.precision), ", ", dtype_name(models_.prior.model->compute().dtype))},
        {"device", describe_device(models_.device)},
        {"batch_size", batch_size_}};
    if (ranks_.world_size() > 1) report.settings.emplace_back("ranks", int64_t{ranks_.world_size()});
    if (!options_.image_prompt.empty()) {
      report.settings.emplace_back("image_prompt", options_.image_prompt.string());
      report.settings.emplace_back("prompt_rows", options_.prompt_rows.value_or(kPromptRows));
    }
    report.models = models_.used;
    report.times_seconds = {{"load", times_.load},
                            {"sample", times_.sample},
                            {"decode", times_.decode},
                            {"rerank", times_.rerank},
                            {"write", times_.write}};
    for (const auto& caption : opened_) {
      if (caption.store.finished().empty()) continue;
      report.captions.push_back(
          caption_scores(caption.text, caption.folder, best_first(caption.store.finished()), keep_, caption.is_done));
    }
    return report;
  }

  // index.html of what is finished so far.
  ScoresReport show_gallery() {
    const double begin = now_seconds();
    const ScoresReport shown = report();
    const bool all = num_finished() == num_wanted();
    Gallery gallery{.title = "sample-and-rerank", .settings = {}, .captions = {}};
    if (!all) {
      gallery.scores_file = "";
      gallery.settings.emplace_back("finished so far", str(num_finished(), " of ", num_wanted(), " candidates"));
    }
    gallery.settings.emplace_back("seed", std::to_string(options_.seed));
    gallery.settings.emplace_back("ordered by", shown.score_name);
    for (const auto& [name, value] : shown.settings) {
      gallery.settings.emplace_back(name,
                                    std::visit([](const auto& held) { return str(std::boolalpha, held); }, value));
    }
    for (const auto& model : shown.models)
      gallery.settings.emplace_back(model.role, str(model.path, " (", model.identity, ")"));
    for (const auto& caption : shown.captions) gallery.captions.push_back(caption_view(caption));
    write_gallery(folder_->path(), gallery);
    shown_ = now_seconds();
    gallery_seconds_ = shown_ - begin;
    return shown;
  }

  void finish() {
    for (auto& caption : opened_) write_sheet(caption);
    const double begin = now_seconds();
    std::vector<SheetCell> overview;
    for (const auto& caption : opened_) {
      if (overview.size() == kMostShown) break;
      const auto best = best_first(caption.store.finished()).front();
      overview.push_back({.picture = caption.store.picture(best.number), .label = caption.text});
    }
    const std::string which =
        opened_.size() > kMostShown ? str("the first ", kMostShown, " of ", opened_.size(), " captions: ") : "";
    const std::string subtitle = str(which, "for each caption the best of ", options_.candidates, " by ",
                                     enum_name(options_.rerank), ", seed ", options_.seed);
    write_png(*folder_ / "contact-sheet.png",
              contact_sheet(overview, {.title = "sample-and-rerank", .subtitle = subtitle}));
    times_.write += now_seconds() - begin;
    write_scores(folder_->path(), show_gallery());
    folder_->finish();  // before the lines go: without them an unfinished run would begin anew
    for (auto& caption : opened_) caption.store.close();
    log_info(str("drawn in ", cli::format_duration(times_.sample), " (",
                 cli::format_rate(tokens_of_all_ / std::max(1e-9, times_.sample)), " tokens/s); open ",
                 (folder_->path() / "index.html").string()));
  }

  SampleOptions options_;
  distributed::Communicator& ranks_;
  double started_ = now_seconds();
  std::vector<std::string> captions_;
  SampleModels models_;
  int64_t keep_, slots_;
  Times times_;
  int64_t batch_size_ = 1;
  int64_t former_ = 0;       // candidates of the interrupted run
  int64_t num_own_ = 0;      // candidates that this process has to draw
  int64_t tokens_done_ = 0;  // by this process
  double tokens_of_all_ = 0;
  double shown_ = started_;     // when index.html was written last
  double gallery_seconds_ = 0;  // that it took
  Tensor prompt_;
  std::optional<SampleFolder> folder_;
  std::vector<Caption> opened_;
  std::optional<cli::StatusLine> status_;
};

}  // namespace

void SampleOptions::validate(const std::string&) const {
  if (out.empty()) throw ConfigError("sample-and-rerank: expected --out DIR, a folder for the results");
  SampleFolder::check(out);
  if (caption.empty() && captions.empty())
    throw ConfigError("sample-and-rerank: expected --caption TEXT or --captions FILE");
  if (!captions.empty()) check_input_file("--captions", captions);
  if (keep && *keep > candidates) {
    throw ConfigError(
        Problem{"--keep", str("at most --candidates, ", candidates), str(*keep), "draw more candidates or keep fewer"});
  }
  if (run.empty() && (prior.empty() || dvae.empty())) {
    throw ConfigError("sample-and-rerank: expected --prior CKPT and --dvae CKPT, or --run DIR");
  }
  if (!image_prompt.empty()) check_input_file("--image-prompt", image_prompt);
  if (prompt_rows && image_prompt.empty()) {
    throw ConfigError(Problem{"--prompt-rows", "--image-prompt FILE, whose rows they are", "none",
                              "leave it out, or name the picture with --image-prompt"});
  }
}

int run_sample_job(const SampleOptions& options) {
  const distributed::Ranks ranks = distributed::join_ranks(
      {.device = options.device, .threads = options.threads, .end = [](const std::string& message) {
         cli::end_at_once("sample-and-rerank", message);
       }});
  return distributed::run_as_rank(*ranks.communicator, [&] {
    ranks.communicator->note("the start", distributed::Pace::kOpenEnded);
    return SampleJob(options, ranks).run();
  });
}

}  // namespace dalle::generation
