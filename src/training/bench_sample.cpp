#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <numeric>

#include "dalle/core/random.h"
#include "dalle/core/str.h"
#include "dalle/generation/fused_model.h"
#include "dalle/generation/token_sampler.h"
#include "dalle/layers/packed_weights.h"
#include "dalle/training/bench_subjects.h"
#include "dalle/training/matrix_speed.h"
#include "dalle/training/metrics.h"

namespace dalle::training {
namespace {

double steady_seconds() { return Throughput::steady_seconds(); }

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// FLOP/s of a matrix product by the processor's time, which other programs do not take part in: the faster of ATen's in `type`
// and our own with packed weights, neither of which is the fastest on every processor.
double multiply_speed(at::ScalarType type, bool int8) {
  constexpr int64_t kSize = 1024, kRuns = 9;
  const c10::NoGradGuard no_grad;
  const auto seconds_of = [](const std::function<void()>& product) {
    std::vector<double> seconds;
    for (int64_t run = 0; run < kRuns; ++run) {
      const double before = cpu_seconds();
      product();
      seconds.push_back((cpu_seconds() - before) / at::get_num_threads());
    }
    return median(seconds);
  };
  const Tensor a = at::ones({kSize, kSize}, type), b = at::ones({kSize, kSize}, type);
  Tensor out = at::empty({kSize, kSize}, type);
  const double of_aten = seconds_of([&] { at::mm_out(out, a, b); });
  const Tensor x = at::ones({kSize, kSize}), sums = at::empty({kSize, kSize});
  const layers::PackedWeights weights(x, int8                 ? layers::WeightFormat::kInt8
                                         : type == at::kFloat ? layers::WeightFormat::kF32
                                                              : layers::WeightFormat::kBf16);
  layers::ProductScratch scratch;
  const double of_ours = seconds_of([&] {
    layers::multiply(x.const_data_ptr<float>(), kSize, kSize, weights, nullptr, sums.mutable_data_ptr<float>(), kSize,
                     scratch);
  });
  return 2.0 * kSize * kSize * kSize / std::min(of_aten, of_ours);
}

// Draws one batch of candidates of a new caption with each call, and keeps what the first and the last row of tokens took.
class SampleSubject {
 public:
  SampleSubject(const models::PriorConfig& config, int64_t batch, at::ScalarType type, bool int8, at::Device device)
      : prior_(config, {type, type}), type_(type), int8_(int8), numbers_(static_cast<size_t>(batch)) {
    prior_.materialize(device);
    prior_.initialize(1);
    sampler_ = std::make_unique<generation::TokenSampler>(prior_, generation::DecodeOptions{.int8_weights = int8});
    std::iota(numbers_.begin(), numbers_.end(), 0);
  }

  void step() {
    const auto& config = prior_.config();
    const Tensor ids_T = at::full({config.text_context - 1}, calls_++ % config.text_vocab_size, at::kLong);
    std::vector<double> done;
    double cpu_after_first = 0;
    sampler_->draw({"bench", ids_T, {}}, numbers_, {}, [&](int64_t) {
      if (done.empty()) cpu_after_first = cpu_seconds();
      done.push_back(steady_seconds());
      return true;
    });
    const double after = cpu_seconds(), threads = at::get_num_threads();
    // Without the first token, which has the text's time.
    const auto row = static_cast<size_t>(config.grid_size), last = done.size() - 1;
    step_cpu_seconds_.push_back((after - cpu_after_first) / threads / static_cast<double>(last));
    first_row_.push_back((done[row - 1] - done[0]) / static_cast<double>(row - 1));
    last_row_.push_back((done[last] - done[last - row + 1]) / static_cast<double>(row - 1));
  }

  BenchFacts facts() const {
    const double first = median(first_row_), last = median(last_row_);
    BenchFacts facts{{"first_row_ms_per_step", 1e3 * first},
                     {"last_row_ms_per_step", 1e3 * last},
                     {"last_to_first_row", last / first}};
    const auto* fused = dynamic_cast<const generation::FusedModel*>(&sampler_->model());
    if (fused == nullptr) return facts;
    const BenchFacts limit = limit_facts(*fused, median(step_cpu_seconds_));
    facts.insert(facts.end(), limit.begin(), limit.end());
    return facts;
  }

 private:
  // A step can't be faster than a plain read of its weights and caches, nor than its multiplications at the speed of large
  // matrix products (int8 weights: in bf16 or int8, whichever is faster). The step's time is that of the
  // processor, so that other programs on the machine count for neither; the first step has the text's time and is left out.
  BenchFacts limit_facts(const generation::FusedModel& model, double step_seconds) const {
    const auto& config = prior_.config();
    const auto batch = static_cast<double>(numbers_.size());
    const auto text = static_cast<double>(generation::text_cache_bytes(config, model.cache_type()));
    const double cache = model.cache_bytes_per_step();
    const double bytes = static_cast<double>(model.weight_bytes()) + text + batch * (cache - text);
    const auto matrices = static_cast<double>(config.num_layers * (4 + 2 * config.mlp_ratio) * config.dim * config.dim +
                                              config.image_vocab_size * config.dim);
    const double attention = 2 * cache / static_cast<double>(c10::elementSize(model.cache_type()));
    const double flops = batch * (2 * matrices + attention);
    const double read = measure_read_speed(static_cast<int64_t>(bytes)), multiply = multiply_speed(type_, int8_);
    return {{"mb_per_step", bytes / 1e6},
            {"gb_per_second", bytes / step_seconds / 1e9},
            {"read_gb_per_second", read / 1e9},
            {"gflops", flops / step_seconds / 1e9},
            {"matrix_gflops", multiply / 1e9},
            {"share_of_limit", std::max(bytes / read, flops / multiply) / step_seconds}};
  }

  models::Prior prior_;
  at::ScalarType type_;
  bool int8_;
  std::unique_ptr<generation::TokenSampler> sampler_;
  std::vector<int64_t> numbers_;
  int64_t calls_ = 0;
  std::vector<double> first_row_, last_row_, step_cpu_seconds_;
};

BenchSubject sampling(const models::PriorConfig& config, int64_t batch, at::ScalarType type, bool int8,
                      at::Device device) {
  const auto subject = std::make_shared<SampleSubject>(config, batch, type, int8, device);
  return {.impl = "",
          .step = [=] { subject->step(); },
          .items = batch * config.image_context(),
          .facts = [=] { return subject->facts(); }};
}

// In each of --precision, and with int8 weights on the CPU.
BenchConfig sample_config(const std::string& name, const models::PriorConfig& config, int64_t batch) {
  return {BenchJob::kSample, name, "tokens/s", [=](const BenchOptions& options, at::Device device) {
            std::vector<BenchSubject> subjects;
            const auto add = [&](at::ScalarType type, bool int8, std::string_view form) {
              subjects.push_back(sampling(config, batch, type, int8, device));
              subjects.back().impl = str("ours_", form);
            };
            for (const Precision precision : options.precision) {
              add(compute_dtype(precision, device), /*int8=*/false, enum_name(precision));
            }
            if (device.is_cpu()) add(compute_dtype(Precision::kAuto, device), /*int8=*/true, "int8");
            return subjects;
          }};
}

}  // namespace

std::vector<BenchConfig> sample_bench_configs() {
  const models::PriorConfig small{.text_context = 64, .grid_size = 16, .dim = 256, .num_heads = 8, .num_layers = 8};
  const models::PriorConfig wide{.text_context = 64, .grid_size = 16, .dim = 1024, .num_heads = 16, .num_layers = 12};
  models::PriorConfig long_small = small;
  long_small.text_context = 256;
  long_small.grid_size = 32;
  std::vector<BenchConfig> configs;
  for (const int64_t batch : {1, 8, 64}) configs.push_back(sample_config(str("small_64+16x16_b", batch), small, batch));
  for (const int64_t batch : {1, 8, 64})
    configs.push_back(sample_config(str("small_256+32x32_b", batch), long_small, batch));
  for (const int64_t batch : {1, 8, 64})
    configs.push_back(sample_config(str("mini_1024x12_64+16x16_b", batch), wide, batch));
  return configs;
}

}  // namespace dalle::training
