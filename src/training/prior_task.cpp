#include "dalle/training/prior_task.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "dalle/core/device.h"
#include "dalle/core/error.h"
#include "dalle/core/random.h"
#include "dalle/core/str.h"
#include "dalle/models/summary.h"
#include "dalle/training/prior_preview.h"
#include "dalle/training/task_support.h"

namespace dalle::training {
namespace {

static_assert(text::kPadToken == models::kPadToken);

constexpr uint64_t kCaptionDropout = ~uint64_t{0};  // the place, among those of Purpose::kDropout, of whole captions

std::optional<models::Loaded<models::Dvae>> load_frozen_dvae(const PriorTraining& config, at::Device device) {
  if (config.dvae.empty()) return std::nullopt;
  const bool is_too_slow = config.precision == Precision::kFp16 && device.is_cpu();
  return models::load_dvae(config.dvae,
                           {.device = device, .precision = is_too_slow ? Precision::kF32 : config.precision});
}

PriorTraining with_sizes(PriorTraining config, const PriorSource& data, const models::Dvae* dvae,
                         const text::Tokenizer& tokenizer) {
  if (const auto* info = data.token_info()) {
    config.model =
        with_known_sizes(config.model, tokenizer.vocab_size(), info->grid_size, info->vocab_size, "the token set");
  } else {
    TORCH_INTERNAL_ASSERT(dvae != nullptr);
    config.model = with_known_sizes(config.model, tokenizer.vocab_size(), dvae->config().grid_size(),
                                    dvae->config().vocab_size, "the dVAE");
  }
  return config;
}

TokenCache token_cache_of(const PriorTraining& config, const PriorSource& data, at::Device device) {
  const bool always_look_the_same =
      config.data.augmentation == data::Augmentation::kNone && !config.data.horizontal_flip;
  if (data.token_info() != nullptr || !always_look_the_same) return {};
  return {data.size(), config.model.grid_size * config.model.grid_size, config.model.image_vocab_size, device};
}

}  // namespace

models::PriorCompute prior_compute(const PriorTraining& config, at::Device device) {
  const at::ScalarType dtype =
      config.precision == Precision::kFp16 ? at::kHalf : compute_dtype(config.precision, device);
  return {dtype, dtype == at::kDouble ? dtype : compute_dtype(config.head_precision, device)};
}

PriorTask::PriorTask(const PriorTraining& config, at::Device device)
    : config_(config),
      device_(device),
      data_(config.data.sources, config.data.tokens),
      validation_(open_prior_validation(config.validation)),
      dvae_(load_frozen_dvae(config, device)),
      encoder_(text::Tokenizer::load(tokenizer_file(config.tokenizer)), config.model.max_caption_tokens(),
               config.bpe_dropout),
      model_((config_ = with_sizes(config, data_, dvae_ ? dvae_->model.get() : nullptr, encoder_.tokenizer())).model,
             prior_compute(config, device)),
      tokens_(token_cache_of(config_, data_, device)),
      cost_{3 * models::summarize(model_).forward_flops_per_sample, model_.compute().dtype} {
  if (config.precision == Precision::kF64) model_.set_parameter_type(at::kDouble);
  // The prior must be given tokens of one dVAE alone, stored, encoded or held out.
  for (const PriorSource* source : std::initializer_list<const PriorSource*>{&data_, validation_.get()}) {
    if (source == nullptr) continue;
    if (dvae_) source->check_dvae(dvae_->identity, config.dvae);
    if (data_.token_info() != nullptr) source->check_dvae(data_.token_info()->dvae, config.data.tokens.front());
  }
}

const models::Dvae& PriorTask::dvae() const {
  TORCH_INTERNAL_ASSERT(dvae_.has_value(), "this prior is trained without a dVAE");
  return *dvae_->model;
}

std::string PriorTask::model_config_yaml() const { return config::emit_yaml(config::dump(config_.model)); }

std::map<std::string, std::string> PriorTask::identities() const {
  return {{"dvae", dvae_ ? dvae_->identity : data_.token_info()->dvae}, {"tokenizer", encoder_.tokenizer().identity()}};
}

int64_t PriorTask::image_size() const { return dvae_ ? dvae().config().image_size : 0; }

text::EncodedCaption PriorTask::training_caption(std::string_view caption, const data::SampleVisit& visit) const {
  const auto seed = static_cast<uint64_t>(config_.trainer.seed), place = static_cast<uint64_t>(visit.position);
  if (config_.caption_dropout > 0) {
    RandomStream stream(random_key(seed, Purpose::kDropout, place, kCaptionDropout));
    if (stream.uniform() < config_.caption_dropout) {
      return {.ids = std::vector<int64_t>(static_cast<size_t>(encoder_.length()), models::kPadToken)};
    }
  }
  return encoder_.encode(caption, bpe_dropout_key(config_.trainer, visit));
}

std::unique_ptr<data::BatchStream> PriorTask::make_loader(int64_t micro_batch_size, int64_t start_position) {
  auto options = loader_options(config_.trainer, image_size(), micro_batch_size, start_position, ranks());
  options.encode_caption = [this](std::string_view caption, const data::SampleVisit& visit) {
    return training_caption(caption, visit);
  };
  return data_.open(config_.data, std::move(options));
}

Tensor PriorTask::image_tokens(const data::Batch& batch) const {
  if (batch.codes.defined()) return to_device(batch.codes, device_);
  return dvae().encode(to_unit_range(batch.images, device_)).flatten(1);
}

PreparedBatch PriorTask::prepare(data::Batch batch, const StepContext&) {
  const c10::NoGradGuard no_grad;
  PreparedBatch prepared;
  if (batch.codes.defined()) {
    prepared.tokens_BI = to_device(batch.codes, device_);
  } else if (prepared.tokens_BI = tokens_.find(batch.indices); !prepared.tokens_BI.defined()) {
    prepared.pixels = to_unit_range(batch.images, device_);
    prepared.tokens_BI = dvae().encode(prepared.pixels).flatten(1);
    tokens_.put(batch.indices, prepared.tokens_BI);
  }
  prepared.num_text_targets = (model_.text_targets(batch.caption_ids) >= 0).sum().item<int64_t>();
  batch.caption_ids = to_device(batch.caption_ids, device_);
  prepared.batch = std::move(batch);
  return prepared;
}

std::vector<double> PriorTask::counts(const PreparedBatch& batch) const {
  return {static_cast<double>(batch.num_text_targets), static_cast<double>(batch.tokens_BI.numel())};
}

StepOutput PriorTask::training_step(const PreparedBatch& batch, const StepContext& context) {
  const layers::Dropout dropout{config_.dropout, static_cast<uint64_t>(config_.trainer.seed), batch.batch.positions,
                                config_.attention_dropout};
  // The weights go into the sums, so that gradients come out as they are used. A loss of weight 0 is still reported.
  const auto weight_or_one = [](double weight) { return weight > 0 ? weight : 1; };
  const double text_weight = weight_or_one(config_.text_loss_weight);
  const double image_weight = weight_or_one(config_.image_loss_weight);
  const auto loss =
      model_.loss(batch.batch.caption_ids, batch.tokens_BI,
                  {.text = text_weight / std::max(1.0, context.totals[0]), .image = image_weight / context.totals[1]},
                  *context.runner, dropout);
  return {
      .loss = loss.text * (config_.text_loss_weight / text_weight) +
              loss.image * (config_.image_loss_weight / image_weight),
      .metrics = {{"image_loss", loss.image / image_weight},
                  {config_.model.text_loss_on_pads ? "text_loss_with_pads" : "text_loss", loss.text / text_weight}}};
}

Tensor PriorTask::caption_ids(const std::vector<std::string>& captions) const {
  std::vector<Tensor> rows;
  for (const auto& caption : captions) rows.push_back(at::tensor(encoder_.encode(caption).ids, at::kLong));
  return at::stack(rows).to(device_);
}

PriorLosses PriorTask::losses_over(const PriorSource& source, int64_t count, layers::BlockRunner& runner) const {
  const c10::NoGradGuard no_grad;
  PriorLosses losses;
  for (const auto& [first, size] : own_batches(count, config_.validation.batch_size, ranks())) {
    ranks().note(str("validation, sample ", first));
    const auto batch =
        size > 0 ? source.range(config_.data, image_size(), first, size, data::RangeIs::kMayBeEmpty) : data::Batch{};
    if (batch.keys.empty()) {  // others may need this rank's parts of the blocks
      const Tensor nothing =
          at::zeros({1, config_.model.image_context()}, at::TensorOptions(at::kLong).device(device_));
      model_.hidden(caption_ids({""}), nothing, runner);
      continue;
    }
    losses.add(model_, caption_ids(batch.captions), image_tokens(batch), runner);
  }
  losses.add_ranks(ranks(), config_.model.image_context());
  return losses;
}

Metrics PriorTask::evaluate(int64_t, layers::BlockRunner& runner) {
  constexpr int64_t kTrainingSamples = 256;
  // The training data as validation sees them: plain crops, first captions, averaged weights.
  const auto training = losses_over(data_, std::min(data_.size(), kTrainingSamples), runner);
  Metrics metrics = training.metrics("train_", config_.text_loss_weight, config_.image_loss_weight);
  last_losses_ = training;
  if (validation_) {
    const int64_t wanted = config_.validation.max_samples;
    const int64_t count = wanted > 0 ? std::min(wanted, validation_->size()) : validation_->size();
    last_losses_ = losses_over(*validation_, count, runner);
    const auto held_out = last_losses_->metrics("", config_.text_loss_weight, config_.image_loss_weight);
    metrics.insert(metrics.end(), held_out.begin(), held_out.end());
  }
  return metrics;
}

std::vector<std::string> validation_names(const PriorTraining& config) {
  const bool has_pad_targets = config.model.text_loss_on_pads;
  std::vector<std::string> names = PriorLosses::names("train_", has_pad_targets);
  if (config.validation.sources.empty() && config.validation.tokens.empty()) return names;
  const auto held_out = PriorLosses::names("", has_pad_targets);
  names.insert(names.end(), held_out.begin(), held_out.end());
  return names;
}

std::vector<Sheet> PriorTask::validation_sheets(int64_t step) {
  if (!last_losses_) return {};
  return {position_loss_sheet(*last_losses_, validation_ ? "held-out" : "training", step)};
}

Sheet PriorTask::samples_of(const PriorSource& source, const std::string& name, int64_t step) const {
  const auto batch = source.range(config_.data, image_size(), 0, std::min(config_.preview_captions, source.size()));
  const Tensor codes_BI = image_tokens(batch);
  std::vector<PreviewCaption> rows;
  for (size_t i = 0; i < batch.captions.size(); ++i) {
    const auto row = static_cast<int64_t>(i);
    rows.push_back({batch.captions[i], batch.images.defined() ? to_unit_range(batch.images[row], at::kCPU) : Tensor(),
                    codes_BI[row]});
  }
  const std::string kind = &source == &data_ ? "training" : "held-out";
  return draw_samples(rows, name, str("samples for ", kind, " captions at step ", step));
}

Sheet PriorTask::draw_samples(const std::vector<PreviewCaption>& rows, const std::string& name,
                              const std::string& title) const {
  return sample_sheet(model_, dvae(), rows, [this](const std::string& caption) { return caption_ids({caption})[0]; },
                      {.name = name, .title = title, .seed = static_cast<uint64_t>(config_.trainer.seed)});
}

bool PriorTask::has_previews() const {
  return dvae_.has_value() && (config_.preview_captions > 0 || !config_.preview_texts.empty());
}

std::vector<Sheet> PriorTask::preview(int64_t step) {
  const c10::NoGradGuard no_grad;
  std::vector<Sheet> sheets;
  if (!dvae_) return sheets;
  if (config_.preview_captions > 0) {
    sheets.push_back(samples_of(data_, "samples", step));
    if (validation_) sheets.push_back(samples_of(*validation_, "samples-held-out", step));
  }
  if (!config_.preview_texts.empty()) {
    std::vector<PreviewCaption> rows;
    for (const auto& text : config_.preview_texts) rows.push_back({text, {}, {}});
    sheets.push_back(draw_samples(rows, "samples-texts", str("samples for your captions at step ", step)));
  }
  return sheets;
}

Sheet PriorTask::input_sheet(const PreparedBatch& batch) {
  const c10::NoGradGuard no_grad;
  PreparedBatch shown = batch;
  const int64_t grid = config_.model.grid_size;
  const Tensor codes = batch.tokens_BI.slice(0, 0, std::min<int64_t>(16, batch.tokens_BI.size(0)));
  // Colours of codes are enlarged to squares here: the sheet enlarges pictures smoothly.
  shown.pixels = dvae_ ? dvae().decode(codes.view({-1, grid, grid}))
                       : at::upsample_nearest2d(code_colours(codes, grid), {16 * grid, 16 * grid});
  return captioned_sheet("inputs", shown,
                         str("what the prior sees first: ", dvae_ ? "decoded image tokens" : "image tokens as colours",
                             " and text pieces"),
                         [&](size_t i) {
                           const std::string pieces =
                               shown_pieces(encoder_.tokenizer(), batch.batch.caption_ids[static_cast<int64_t>(i)]);
                           return pieces.empty() ? "(no caption)" : pieces;
                         });
}

}  // namespace dalle::training
