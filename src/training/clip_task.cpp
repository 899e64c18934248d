#include "dalle/training/clip_task.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "dalle/core/device.h"
#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/evaluation/retrieval.h"
#include "dalle/training/task_support.h"

namespace dalle::training {
namespace {

constexpr int64_t kRecallsAt[] = {1, 5, 10};

std::vector<std::string> retrieval_names(const std::string& prefix) {
  std::vector<std::string> names;
  for (const int64_t k : kRecallsAt) {
    names.push_back(str(prefix, "_image_to_text_r", k));
    names.push_back(str(prefix, "_text_to_image_r", k));
  }
  names.push_back(prefix + "_pairs");
  return names;
}

// The model as the tokenizer wants it: its pieces, start and end.
ClipTraining with_vocabulary(ClipTraining config, const text::TextTokenizer& tokenizer) {
  if (config.model.tokenizer_kind != tokenizer.kind()) {
    throw ConfigError(Problem{"model.tokenizer_kind",
                              str(enum_name(tokenizer.kind()), ", as ", config.tokenizer.string(), " is"),
                              std::string(enum_name(config.model.tokenizer_kind)), ""});
  }
  const int64_t wanted = tokenizer.vocab_size() + 2;
  if (config.model.text_vocab_size == 0) config.model.text_vocab_size = wanted;
  if (config.model.text_vocab_size != wanted) {
    throw ConfigError(Problem{"model.text_vocab_size", str(wanted, " (the tokenizer's pieces + 2), or 0"),
                              str(config.model.text_vocab_size), ""});
  }
  return config;
}

// Each picture moved by its own offset of up to `range` pixels, edges repeated.
Tensor shifted(const Tensor& pixels, int64_t range, const std::vector<int64_t>& positions, uint64_t seed) {
  const int64_t size = pixels.size(2);
  const Tensor padded = at::replication_pad2d(pixels, {range, range, range, range});
  std::vector<Tensor> out;
  for (size_t i = 0; i < positions.size(); ++i) {
    RandomStream random(random_key(seed, Purpose::kAugment, static_cast<uint64_t>(positions[i]), /*b=*/1));
    const int64_t top = random.integer(0, 2 * range), left = random.integer(0, 2 * range);
    out.push_back(padded[static_cast<int64_t>(i)].slice(1, top, top + size).slice(2, left, left + size));
  }
  return at::stack(out);
}

}  // namespace

ClipTask::ClipTask(const ClipTraining& config, at::Device device)
    : config_(config),
      device_(device),
      dataset_(config.data.sources),
      validation_(open_validation(config.validation)),
      tokenizer_(text::TextTokenizer::load(tokenizer_file(config.tokenizer))),
      model_((config_ = with_vocabulary(config, tokenizer_)).model, compute_dtype(config.precision, device)) {
  if (config.precision == Precision::kF64) model_.set_parameter_type(at::kDouble);
  if (!config.dvae.empty()) {
    dvae_ = models::load_dvae(config.dvae, {.device = device, .precision = config.precision});
    if (dvae_->model->config().image_size != config.model.image_size) {
      throw ConfigError(Problem{"model.image_size", str(dvae_->model->config().image_size, ", as the dVAE has"),
                                str(config.model.image_size), ""});
    }
  }
}

std::string ClipTask::model_config_yaml() const { return config::emit_yaml(config::dump(config_.model)); }

std::map<std::string, std::string> ClipTask::identities() const {
  std::map<std::string, std::string> out{{"tokenizer", tokenizer_.identity()}};
  if (dvae_) out["dvae"] = dvae_->identity;
  return out;
}

std::unique_ptr<data::BatchStream> ClipTask::make_loader(int64_t micro_batch_size, int64_t start_position) {
  auto options = loader_options(config_.trainer, config_.model.image_size, micro_batch_size, start_position, ranks());
  options.encode_caption = [this](std::string_view caption, const data::SampleVisit& visit) {
    const auto pieces = tokenizer_.encode(caption, config_.bpe_dropout, bpe_dropout_key(config_.trainer, visit));
    return text::EncodedCaption{.ids = models::clip_text_ids(config_.model, pieces),
                                .truncated = static_cast<int64_t>(pieces.size()) > config_.model.max_caption_tokens()};
  };
  return std::make_unique<data::Loader>(dataset_, config_.data, std::move(options));
}

PreparedBatch ClipTask::prepare(data::Batch batch, const StepContext&) {
  const c10::NoGradGuard no_grad;
  PreparedBatch prepared;
  if (const auto rows = rows_through_dvae(batch); !rows.empty()) {
    const Tensor images = batch.images.index_select(0, at::tensor(rows, at::kLong));
    std::vector<int64_t> positions;
    for (const int64_t row : rows) positions.push_back(batch.positions[static_cast<size_t>(row)]);
    prepared.tokens_BI = dvae_->model->encode(shifted_pixels(images, positions)).flatten(1);
  }
  batch.caption_ids = to_device(batch.caption_ids, device_);
  prepared.batch = std::move(batch);
  return prepared;
}

std::vector<int64_t> ClipTask::rows_through_dvae(const data::Batch& batch) const {
  std::vector<int64_t> rows;
  if (!dvae_ || config_.reconstructed_share == 0) return rows;
  for (size_t i = 0; i < batch.positions.size(); ++i) {
    RandomStream random(random_key(static_cast<uint64_t>(config_.trainer.seed), Purpose::kAugment,
                                   static_cast<uint64_t>(batch.positions[i]), /*b=*/2));
    if (random.uniform() < config_.reconstructed_share) rows.push_back(static_cast<int64_t>(i));
  }
  return rows;
}

Tensor ClipTask::shifted_pixels(const Tensor& images, const std::vector<int64_t>& positions) const {
  const Tensor pixels = to_unit_range(images, device_);
  if (config_.shift_pixels == 0) return pixels;
  return shifted(pixels, config_.shift_pixels, positions, static_cast<uint64_t>(config_.trainer.seed));
}

Tensor ClipTask::pixels(const PreparedBatch& batch) const {
  const c10::NoGradGuard no_grad;
  const Tensor pixels = shifted_pixels(batch.batch.images, batch.batch.positions);
  if (!batch.tokens_BI.defined()) return pixels;
  const int64_t grid = dvae_->model->config().grid_size();
  const Tensor seen = dvae_->model->decode(batch.tokens_BI.view({-1, grid, grid})).to(pixels.scalar_type());
  const Tensor rows = to_device(at::tensor(rows_through_dvae(batch.batch), at::kLong), device_);
  return pixels.index_copy(0, rows, seen.contiguous());
}

std::vector<double> ClipTask::counts(const PreparedBatch& batch) const {
  return {static_cast<double>(batch.batch.images.size(0))};
}

void ClipTask::begin_step(const std::vector<PreparedBatch>& batches, const StepContext& context) {
  cached_.reset();
  next_micro_batch_ = 0;
  num_micro_batches_ = batches.size();
  if (batches.size() == 1) return;
  const c10::NoGradGuard no_grad;
  std::vector<Tensor> images, texts;
  for (const auto& batch : batches) {
    images.push_back(model_.encode_image(pixels(batch), *context.runner));
    texts.push_back(model_.encode_text(batch.batch.caption_ids, *context.runner));
  }
  cached_.emplace(images, texts, model_.scale(), ranks());
}

StepOutput ClipTask::training_step(const PreparedBatch& batch, const StepContext& context) {
  const Tensor image = model_.encode_image(pixels(batch), *context.runner);
  const Tensor text = model_.encode_text(batch.batch.caption_ids, *context.runner);
  const Tensor scale = model_.scale();
  const Tensor loss = cached_ ? cached_->share(next_micro_batch_++, image, text, scale)
                              : contrastive_share(image, text, scale, ranks());
  const auto shares = static_cast<double>(num_micro_batches_) * ranks().world_size();
  return {.loss = loss, .metrics = {{"logit_scale", scale.detach() / shares}}};
}

void ClipTask::after_update(const Tensor&) {
  constexpr double kLargest = 4.60516;  // just below ln 100, where Clip::scale() still has a gradient
  const c10::NoGradGuard no_grad;
  model_.logit_scale.tensor.clamp_(0, kLargest);
}

void ClipTask::add_retrieval(const data::Dataset& dataset, int64_t count, const std::string& prefix,
                             layers::BlockRunner& runner, Metrics& metrics) const {
  const c10::NoGradGuard no_grad;
  // Rows of samples that another rank has, or that are unusable, stay 0.
  const at::TensorOptions host = model_.logit_scale.tensor.options().device(at::kCPU).requires_grad(false);
  Tensor images = at::zeros({count, config_.model.embed_dim}, host), texts = at::zeros_like(images);
  Tensor is_usable = at::zeros({count}, at::kLong);
  for (const auto& [first, size] : own_batches(count, config_.validation.batch_size, ranks())) {
    ranks().note(str("validation, sample ", first));
    auto batch =
        data::load_range(dataset, config_.data, config_.model.image_size, first, size, {}, data::RangeIs::kMayBeEmpty);
    const bool is_empty = batch.keys.empty();
    if (is_empty) {  // others may need this rank's parts of the blocks
      batch.images = at::zeros({1, 3, config_.model.image_size, config_.model.image_size}, at::kByte);
      batch.captions = {""};
    }
    std::vector<Tensor> ids;
    for (const auto& caption : batch.captions) {
      ids.push_back(at::tensor(models::clip_text_ids(config_.model, tokenizer_.encode(caption)), at::kLong));
    }
    const Tensor of_images = model_.encode_image(to_unit_range(batch.images, device_), runner);
    const Tensor of_texts = model_.encode_text(at::stack(ids).to(device_), runner);
    if (is_empty) continue;
    const Tensor rows = at::tensor(batch.positions, at::kLong);
    images.index_copy_(0, rows, of_images.to(host));
    texts.index_copy_(0, rows, of_texts.to(host));
    is_usable.index_fill_(0, rows, 1);
  }
  for (Tensor* part : {&images, &texts, &is_usable}) ranks().all_reduce_sum(*part);
  const Tensor used = is_usable.nonzero().squeeze(1);
  images = images.index_select(0, used);
  texts = texts.index_select(0, used);
  std::vector<double> values;
  for (const int64_t k : kRecallsAt) {
    const auto recall = evaluation::recall_at(images, texts, k);
    values.insert(values.end(), {recall.image_to_text, recall.text_to_image});
  }
  values.push_back(static_cast<double>(images.size(0)));
  const auto names = retrieval_names(prefix);
  for (size_t i = 0; i < names.size(); ++i) metrics.emplace_back(names[i], values[i]);
}

std::vector<std::string> validation_names(const ClipTraining& config) {
  auto names = retrieval_names("train");
  if (config.validation.sources.empty()) return names;
  const auto held_out = retrieval_names("validation");
  names.insert(names.end(), held_out.begin(), held_out.end());
  return names;
}

Metrics ClipTask::evaluate(int64_t, layers::BlockRunner& runner) {
  Metrics metrics;
  add_retrieval(dataset_, std::min<int64_t>(100, dataset_.size()), "train", runner, metrics);
  if (validation_) {
    add_retrieval(*validation_, validation_size(*validation_, config_.validation), "validation", runner, metrics);
  }
  return metrics;
}

std::vector<Sheet> ClipTask::preview(int64_t) { return {}; }

Sheet ClipTask::input_sheet(const PreparedBatch& batch) {
  PreparedBatch seen = batch;
  seen.pixels = pixels(batch);
  return captioned_sheet("inputs", seen, "what CLIP sees first: pictures and text pieces", [&](size_t i) {
    // Past the start-of-text id and up to the end-of-text id; zeros after it are no pieces.
    const Tensor row = batch.batch.caption_ids[static_cast<int64_t>(i)];
    return shown_pieces(tokenizer_, row.slice(0, 1, row.slice(0, 1).argmax().item<int64_t>() + 1));
  });
}

}  // namespace dalle::training
