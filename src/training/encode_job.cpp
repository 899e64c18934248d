#include "dalle/training/encode_job.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>
#include <iostream>

#include "dalle/cli/status_line.h"
#include "dalle/core/device.h"
#include "dalle/core/dtype_name.h"
#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/logging.h"
#include "dalle/core/signals.h"
#include "dalle/core/str.h"
#include "dalle/data/crop_loader.h"
#include "dalle/evaluation/code_usage.h"
#include "dalle/models/load.h"
#include "dalle/storage/token_set.h"
#include "dalle/training/run_directory.h"
#include "dalle/training/task_support.h"
#include "encode_shards.h"

namespace dalle::training {
namespace {

namespace fs = std::filesystem;

std::string counted(int64_t number, const std::string& noun) { return str(number, " ", noun, number == 1 ? "" : "s"); }

std::string size_text(double bytes) { return cli::format_rate(bytes) + "B"; }

/// What decides the codes, apart from the dVAE and the data.
std::map<std::string, std::string> crop_settings(const data::DataConfig& data, at::ScalarType dtype) {
  return {{"augmentation", std::string(enum_name(data.augmentation))},
          {"horizontal_flip", data.horizontal_flip ? "true" : "false"},
          {"resize_filter", std::string(enum_name(data.resize_filter))},
          {"upscale_small", data.upscale_small ? "true" : "false"},
          {"background", data.background},
          {"precision", dtype_name(dtype)}};
}

class EncodeJob {
 public:
  EncodeJob(const EncodeConfig& config, const cli::Invocation& call)
      : config_(config),
        call_(call),
        device_(select_device(call.device)),
        dataset_(config.data.pictures.sources),
        dvae_(models::load_dvae(config.dvae, {.device = device_, .precision = config.precision})),
        judge_(config.data.pictures.max_bad_share),
        usage_(dvae_.model->config().vocab_size) {
    const auto& model = dvae_.model->config();
    info_ = {.dvae = dvae_.identity,
             .picture_size = model.image_size,
             .grid_size = model.grid_size(),
             .vocab_size = model.vocab_size,
             .num_crops = config.crops_per_image,
             .seed = config.seed,
             .dataset_size = dataset_.size(),
             .settings = crop_settings(config.data.pictures, compute_dtype(config.precision, device_))};
    for (int64_t first = 0; first < dataset_.size(); first += config.samples_per_shard) {
      ranges_.push_back({first, std::min(dataset_.size(), first + config.samples_per_shard)});
    }
    headers_.resize(ranges_.size());
  }

  int run() {
    const c10::NoGradGuard no_grad;
    const RunDirectory run =
        call_.resume ? RunDirectory::open(call_.run_dir, RunFolders::kNone)
                     : RunDirectory::create(
                           call_.run_dir.empty() ? RunDirectory::default_path(call_.config_name) : call_.run_dir,
                           call_.resolved_config, RunFolders::kNone);
    set_log_file(run.log_file());
    folder_ = run.root() / "shards";
    fs::create_directories(folder_);
    log_info(str(call_.command, ": ", run.root().string(), "; device: ", describe_device(device_)));
    log_info(str("dVAE: ", dvae_.path.string(), ", identity ", dvae_.identity, "; ", counted(dataset_.size(), "sample"),
                 ", ", counted(info_.num_crops, "crop"), " of each, ", info_.tokens_per_crop(), " tokens a crop"));
    const auto missing = keep_whole_shards();
    check_free_space(missing);
    if (!encode(missing)) {
      log_info(str("stopped by a signal with ", ranges_.size() - num_missing_, " of ", ranges_.size(),
                   " shards written; go on with ", call_.command, " --resume=", run.root().string()));
      return cli::kStopped;
    }
    finish();
    return cli::kDone;
  }

 private:
  fs::path shard_path(size_t number) const { return folder_ / storage::token_shard_name(static_cast<int64_t>(number)); }

  /// Numbers of the shards still to be made.
  std::vector<size_t> keep_whole_shards() {
    remove_unfinished_files(folder_);
    std::vector<size_t> missing;
    for (size_t number = 0; number < ranges_.size(); ++number) {
      if (!keep(number)) missing.push_back(number);
    }
    if (call_.resume) log_info(str(ranges_.size() - missing.size(), " of ", ranges_.size(), " shards are kept"));
    num_missing_ = missing.size();
    return missing;
  }

  /// Whether the shard is there and whole. Throws ConfigError where it is another run's.
  bool keep(size_t number) {
    const auto shard = open_whole_shard(shard_path(number));
    if (!shard) return false;
    const auto& range = ranges_[number];
    check_same_run(*shard, info_, range, dataset_);
    headers_[number] = shard->header();
    judge_.add_earlier(range.end - range.first, range.end - range.first - shard->size());
    return true;
  }

  void check_free_space(const std::vector<size_t>& missing) const {
    double samples = 0;
    for (const size_t number : missing) samples += static_cast<double>(ranges_[number].end - ranges_[number].first);
    const double needed =
        samples * static_cast<double>(info_.num_crops * info_.tokens_per_crop() * info_.token_bytes());
    const auto free = static_cast<double>(free_disk_bytes(folder_));
    if (needed <= free) return;
    throw FileError(Problem{.place = folder_.string(),
                            .expected = str("room for ", size_text(needed), " of tokens"),
                            .got = str(size_text(free), " free"),
                            .hint = "free some space and go on with --resume, or lower crops_per_image in a new run"});
  }

  /// False where a signal came; the shard at work is dropped then.
  bool encode(const std::vector<size_t>& missing) {
    std::vector<data::IndexRange> ranges;
    for (const size_t number : missing) ranges.push_back(ranges_[number]);
    data::CropLoader loader(dataset_, config_.data.pictures,
                            {.image_size = info_.picture_size,
                             .num_crops = info_.num_crops,
                             .samples_per_batch = std::max<int64_t>(1, config_.batch_size / info_.num_crops),
                             .seed = static_cast<uint64_t>(config_.seed)},
                            std::move(ranges));
    const StopSignals signals;
    started_ = std::chrono::steady_clock::now();
    int64_t samples_done = dataset_.size();
    for (const size_t number : missing) samples_done -= ranges_[number].end - ranges_[number].first;
    cli::StatusLine status("encode", "images", dataset_.size(), samples_done);
    for (const size_t number : missing) {
      storage::TokenShardWriter writer(info_, ranges_[number].first, ranges_[number].end);
      for (int64_t done = ranges_[number].first; done < ranges_[number].end;) {
        const data::CropBatch batch = loader.next();
        judge_.add(batch.range.end - batch.range.first, batch.bad);
        add_batch(batch, writer);
        samples_done += batch.range.end - done;
        done = batch.range.end;
        status.update({.step = samples_done,
                       .items_per_second = crops_per_second(),
                       .wait_share = loader.seconds_waited() / std::max(1e-9, seconds())});
        if (stop_requested()) return false;
      }
      headers_[number] = writer.write(shard_path(number));
      --num_missing_;
    }
    return true;
  }

  void add_batch(const data::CropBatch& batch, storage::TokenShardWriter& writer) {
    if (batch.indices.empty()) return;
    std::vector<Tensor> parts;  // a picture with more crops than batch_size goes through in pieces
    for (const Tensor& images : batch.images.split(config_.batch_size)) {
      parts.push_back(dvae_.model->encode(to_unit_range(images, device_)).to(at::kCPU));
    }
    const Tensor codes = at::cat(parts).contiguous();
    usage_.add(codes);
    num_crops_ += codes.size(0);
    const auto record = static_cast<size_t>(info_.num_crops * info_.tokens_per_crop());
    const std::span<const int64_t> all(codes.const_data_ptr<int64_t>(), static_cast<size_t>(codes.numel()));
    for (size_t i = 0; i < batch.indices.size(); ++i) {
      writer.add({batch.indices[i], batch.keys[i], batch.captions[i], all.subspan(i * record, record)});
    }
  }

  void finish() {
    const auto set = storage::describe_token_set(headers_, dvae_.path.string(), dvae_.step);
    if (set.num_samples == 0) {
      throw DataError(Problem{.place = "pictures",
                              .expected = "usable pictures",
                              .got = str("none of ", dataset_.size()),
                              .hint = "the warnings above name the first of them"});
    }
    storage::write_token_set(folder_, set);
    double bytes = 0;
    for (const auto& shard : set.shards) bytes += static_cast<double>(shard.bytes);
    if (num_crops_ > 0) {
      log_info(str("this process encoded ", counted(num_crops_, "crop"), " in ", cli::format_duration(seconds()), ", ",
                   cli::format_rate(crops_per_second()), " images/s; ", usage_.num_used(), " of ", info_.vocab_size,
                   " codes in use, perplexity ", cli::format_rate(usage_.perplexity())));
    }
    log_info(str(call_.command, ": ", counted(set.num_samples, "sample"), " with ",
                 counted(set.num_captions, "caption"), " in ",
                 counted(static_cast<int64_t>(set.shards.size()), "shard"), ", ", size_text(bytes), "; ",
                 counted(judge_.num_bad(), "unusable picture"), " left out; ", folder_.string()));
  }

  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count(); }
  double crops_per_second() const { return static_cast<double>(num_crops_) / std::max(1e-9, seconds()); }

  EncodeConfig config_;
  cli::Invocation call_;
  at::Device device_;
  data::Dataset dataset_;
  models::Loaded<models::Dvae> dvae_;
  data::BadSampleJudge judge_;
  evaluation::CodeUsage usage_;
  storage::TokenShardInfo info_;
  std::vector<data::IndexRange> ranges_;            // of each shard
  std::vector<storage::TokenShardHeader> headers_;  // of each shard that is there
  fs::path folder_;
  size_t num_missing_ = 0;
  int64_t num_crops_ = 0;  // encoded by this process
  std::chrono::steady_clock::time_point started_;
};

}  // namespace

void EncodeConfig::validate(const std::string& place) const {
  if (dvae.empty()) {
    throw ConfigError(Problem{.place = place,
                              .expected = "dvae: a checkpoint, run directory or .safetensors file",
                              .got = "nothing",
                              .hint = "train one with train-dvae"});
  }
  data.validate(place);  // also where the section is left out
  const auto& pictures = data.pictures;
  if (crops_per_image > 1 && pictures.augmentation == data::Augmentation::kNone && !pictures.horizontal_flip) {
    throw ConfigError(Problem{.place = place,
                              .expected = "crops_per_image: 1, as every crop is the same without augmentation",
                              .got = str(crops_per_image),
                              .hint = "or set data.augmentation: stage2"});
  }
}

int run_encode(const EncodeConfig& config, const cli::Invocation& call) {
  set_num_threads(call.threads);
  return EncodeJob(config, call).run();
}

void check_encode(const EncodeConfig& config, const cli::Invocation& call) {
  note_missing_sources(config.data.pictures);
  std::cout << call.command << " " << call.config_name << ": the config is valid\n";
  if (!fs::exists(config.dvae)) {
    log_info(str("note: dvae: ", config.dvae.string(), " is not there yet; what a picture costs depends on it"));
    return;
  }
  const auto dvae = models::load_dvae(config.dvae, {});
  const auto& model = dvae.model->config();
  const int64_t tokens = model.grid_size() * model.grid_size();
  const int64_t bytes = config.crops_per_image * tokens * (model.vocab_size <= 65536 ? 2 : 4);
  const double logits = 4.0 * static_cast<double>(config.batch_size * tokens) * static_cast<double>(model.vocab_size);
  std::cout << str("dVAE: ", dvae.path.string(), ", identity ", dvae.identity, ", ", dvae.model->num_parameters(),
                   " parameters\n", "a picture: ", counted(config.crops_per_image, "crop"), " of ", model.image_size,
                   "x", model.image_size, " pixels, ", tokens, " tokens each of ", model.vocab_size, " codes: ", bytes,
                   " bytes and its captions; a million pictures: ", size_text(1e6 * static_cast<double>(bytes)), "\n",
                   "memory: weights ", size_text(4.0 * static_cast<double>(dvae.model->num_parameters())),
                   ", logits of a batch ", size_text(logits), ", a shard ",
                   size_text(static_cast<double>(bytes) * static_cast<double>(config.samples_per_shard)),
                   "; the encoder's activations come on top and grow with batch_size\n");
}

}  // namespace dalle::training
