#include "dalle/training/prior_task.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <numeric>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/generation/token_sampler.h"
#include "dalle/layers/cross_entropy.h"
#include "dalle/training/task_support.h"

namespace dalle::training {
namespace {

static_assert(text::kPadToken == models::kPadToken);

void fill(const char* key, int64_t& value, int64_t wanted, const char* owner) {
  if (value == 0) value = wanted;
  if (value == wanted) return;
  throw ConfigError(Problem{str("model.", key), str(wanted, ", as ", owner, " has, or 0"), str(value), ""});
}

PriorTraining with_sizes(PriorTraining config, const models::DvaeConfig& dvae, const text::Tokenizer& tokenizer) {
  fill("grid_size", config.model.grid_size, dvae.grid_size(), "the dVAE");
  fill("image_vocab_size", config.model.image_vocab_size, dvae.vocab_size, "the dVAE");
  fill("text_vocab_size", config.model.text_vocab_size, tokenizer.vocab_size(), "the tokenizer");
  return config;
}

models::PriorCompute compute_of(const PriorTraining& config, at::Device device) {
  return {compute_dtype(config.precision, device), compute_dtype(config.head_precision, device)};
}

Tensor id_rows(const std::vector<std::vector<int64_t>>& rows) {
  std::vector<Tensor> tensors;
  for (const auto& row : rows) tensors.push_back(at::tensor(row, at::kLong));
  return at::stack(tensors);
}

}  // namespace

PriorTask::PriorTask(const PriorTraining& config, at::Device device)
    : config_(config),
      device_(device),
      dataset_(config.data.sources),
      validation_(open_validation(config.validation)),
      dvae_(models::load_dvae(config.dvae, {.device = device, .precision = config.precision})),
      encoder_(text::Tokenizer::load(tokenizer_file(config.tokenizer)), config.model.max_caption_tokens(),
               config.bpe_dropout),
      model_((config_ = with_sizes(config, dvae_.model->config(), encoder_.tokenizer())).model,
             compute_of(config, device)) {}

std::string PriorTask::model_config_yaml() const { return config::emit_yaml(config::dump(config_.model)); }

std::map<std::string, std::string> PriorTask::identities() const {
  return {{"dvae", dvae_.identity}, {"tokenizer", encoder_.tokenizer().identity()}};
}

std::unique_ptr<data::Loader> PriorTask::make_loader(int64_t micro_batch_size, int64_t start_position) {
  auto options = loader_options(config_.trainer, dvae().config().image_size, micro_batch_size, start_position);
  options.encode_caption = [this](std::string_view caption, int64_t position) {
    const auto seed = static_cast<uint64_t>(config_.trainer.seed);
    return encoder_.encode(caption, random_key(seed, Purpose::kBpeDropout, static_cast<uint64_t>(position))).ids;
  };
  return std::make_unique<data::Loader>(dataset_, config_.data, std::move(options));
}

PreparedBatch PriorTask::prepare(data::Batch batch, const StepContext&) {
  const c10::NoGradGuard no_grad;
  PreparedBatch prepared;
  prepared.pixels = to_unit_range(batch.images, device_);
  prepared.tokens_BI = dvae().encode(prepared.pixels).flatten(1);
  batch.caption_ids = batch.caption_ids.to(device_);
  prepared.batch = std::move(batch);
  return prepared;
}

std::vector<double> PriorTask::counts(const PreparedBatch& batch) const {
  const double text = static_cast<double>((model_.text_targets(batch.batch.caption_ids) >= 0).sum().item<int64_t>());
  return {text, static_cast<double>(batch.tokens_BI.numel())};
}

StepOutput PriorTask::training_step(const PreparedBatch& batch, const StepContext& context) {
  const auto output = model_.forward(batch.batch.caption_ids, batch.tokens_BI, *context.runner);
  const Tensor targets = model_.text_targets(batch.batch.caption_ids);
  const Tensor text = layers::cross_entropy_sum(output.text_logits_BTV, targets) / std::max(1.0, context.totals[0]);
  const Tensor image = layers::cross_entropy_sum(output.image_logits_BIV, batch.tokens_BI) / context.totals[1];
  return {.loss = text * config_.text_loss_weight + image * config_.image_loss_weight,
          .metrics = {{"image_loss", image}, {"text_loss", text}}};
}

Tensor PriorTask::caption_ids(const std::vector<std::string>& captions) const {
  std::vector<std::vector<int64_t>> rows;
  for (const auto& caption : captions) rows.push_back(encoder_.encode(caption).ids);
  return id_rows(rows).to(device_);
}

std::pair<double, double> PriorTask::losses_over(const data::Dataset& dataset, int64_t count) const {
  const c10::NoGradGuard no_grad;
  double text = 0, image = 0, num_text = 0, num_image = 0;
  for (int64_t first = 0; first < count; first += config_.validation.batch_size) {
    const int64_t size = std::min(config_.validation.batch_size, count - first);
    const auto batch = data::load_range(dataset, config_.data, dvae().config().image_size, first, size);
    const Tensor ids = caption_ids(batch.captions);
    const Tensor tokens = dvae().encode(to_unit_range(batch.images, device_)).flatten(1);
    const auto output = model_.forward(ids, tokens);
    const Tensor targets = model_.text_targets(ids);
    text += layers::cross_entropy_sum(output.text_logits_BTV, targets).item<double>();
    image += layers::cross_entropy_sum(output.image_logits_BIV, tokens).item<double>();
    num_text += static_cast<double>((targets >= 0).sum().item<int64_t>());
    num_image += static_cast<double>(tokens.numel());
  }
  return {text / std::max(1.0, num_text), image / num_image};
}

Metrics PriorTask::evaluate(int64_t) {
  Metrics metrics;
  // The training pictures as validation sees them: plain crops, first captions, averaged weights.
  const auto [train_text, train_image] = losses_over(dataset_, std::min<int64_t>(dataset_.size(), 256));
  metrics.emplace_back("train_image_loss", train_image);
  metrics.emplace_back("train_text_loss", train_text);
  if (validation_) {
    const auto [text, image] = losses_over(*validation_, validation_size(*validation_, config_.validation));
    metrics.emplace_back("image_loss", image);
    metrics.emplace_back("text_loss", text);
  }
  return metrics;
}

std::vector<Sheet> PriorTask::preview(int64_t step) {
  constexpr int64_t kCandidates = 4;
  const auto batch = data::load_range(dataset_, config_.data, dvae().config().image_size, 0,
                                      std::min(config_.preview_captions, dataset_.size()));
  const int64_t count = batch.images.size(0);
  const Tensor pixels = to_unit_range(batch.images, device_);
  const Tensor reconstructed = dvae().decode(dvae().encode(pixels));
  const int64_t grid = dvae().config().grid_size();
  std::vector<int64_t> numbers(kCandidates);
  std::iota(numbers.begin(), numbers.end(), 0);
  std::vector<generation::SheetRow> rows;
  for (int64_t i = 0; i < count; ++i) {
    const std::string& caption = batch.captions[static_cast<size_t>(i)];
    const auto drawn = generation::sample_tokens(model_, {caption, caption_ids({caption})[0], {}}, numbers,
                                                 {.filter = {}, .seed = static_cast<uint64_t>(config_.trainer.seed)});
    generation::SheetRow row{caption, {{.picture = pixels[i]}, {.picture = reconstructed[i]}}};
    const Tensor pictures = dvae().decode(drawn.tokens_BI.view({kCandidates, grid, grid}));
    for (auto& cell : generation::make_cells(pictures)) row.cells.push_back(std::move(cell));
    rows.push_back(std::move(row));
  }
  generation::SheetOptions options;
  options.title = "samples for training captions at step " + std::to_string(step);
  options.column_titles = {"picture", "dVAE", "sample 0", "sample 1", "sample 2", "sample 3"};
  options.cell_size = 96;
  return {{"samples", generation::labelled_rows(rows, options)}};
}

Sheet PriorTask::input_sheet(const PreparedBatch& batch) {
  PreparedBatch shown = batch;
  const int64_t count = std::min<int64_t>(16, batch.pixels.size(0)), grid = dvae().config().grid_size();
  {
    const c10::NoGradGuard no_grad;  // the prior sees tokens: show what they decode to
    shown.pixels = dvae().decode(batch.tokens_BI.slice(0, 0, count).view({count, grid, grid}));
  }
  return captioned_sheet(
      "inputs", shown, "what the prior sees first: decoded image tokens and text pieces",
      [&](size_t i) { return shown_pieces(encoder_.tokenizer(), batch.batch.caption_ids[static_cast<int64_t>(i)]); });
}

std::string PriorTask::closing_note() const {
  if (encoder_.num_truncated() == 0) return "";
  return str(encoder_.num_truncated(), " of ", encoder_.num_encoded(), " captions were longer than ", encoder_.length(),
             " tokens and cut");
}

}  // namespace dalle::training
