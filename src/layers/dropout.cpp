#include "dalle/layers/dropout.h"

#include <ATen/ATen.h>

#include <cmath>

#include "dalle/core/device.h"
#include "dalle/core/random.h"

namespace dalle::layers {
namespace {

constexpr uint64_t kAttentionPlaces = uint64_t{1} << 32;  // of Purpose::kDropout, far from those of Dropout::apply()

}  // namespace

Tensor Dropout::apply(const Tensor& x, int64_t place) const {
  if (rate <= 0) return x;
  TORCH_CHECK_VALUE(rate < 1 && x.size(0) == static_cast<int64_t>(positions.size()),
                    "[dropout] expected a rate below 1 and a position for each of ", x.size(0), " samples, got rate ",
                    rate, " and ", positions.size(), " positions");
  std::vector<RandomKey> keys;
  for (const int64_t position : positions) {
    keys.push_back(random_key(seed, Purpose::kDropout, static_cast<uint64_t>(position), static_cast<uint64_t>(place)));
  }
  const Tensor dropped = uniform_rows(keys, x.numel() / x.size(0), x.device()).lt_(rate).to(at::kBool);
  return x.masked_fill(dropped.view(x.sizes()), 0) * (1 / (1 - rate));
}

void AttentionDropout::check_batch(int64_t batch) const {
  TORCH_CHECK_VALUE(!is_on() || batch == static_cast<int64_t>(keys.size()),
                    "[dropout] expected a position for each of ", batch, " samples, got ", keys.size());
}

uint32_t AttentionDropout::threshold() const { return static_cast<uint32_t>(std::llround(std::ldexp(rate, 32))); }

PairRow AttentionDropout::row(RandomKey key, int64_t head, int64_t query) {
  return pair_row(key, static_cast<uint64_t>(head) << 32 | static_cast<uint64_t>(query));
}

Tensor AttentionDropout::factors(int64_t heads, int64_t length, at::Device device) const {
  // The words of core/pair_words.h in 64-bit integers, whose low halves multiply as 32-bit ones do.
  constexpr int64_t kWord = 0xFFFFFFFF;
  const auto mixed = [](Tensor x) {
    x = x.bitwise_xor(x.__rshift__(16)).mul_(int64_t{0x7FEB352D}).bitwise_and_(kWord);
    x = x.bitwise_xor(x.__rshift__(15)).mul_(int64_t{0x846CA68B}).bitwise_and_(kWord);
    return x.bitwise_xor_(x.__rshift__(16));
  };
  const auto on_device = at::TensorOptions(at::kLong).device(device);
  const Tensor columns = at::arange(length, on_device);
  const Tensor all = at::empty({static_cast<int64_t>(keys.size()), heads, length, length}, on_device.dtype(at::kFloat));
  for (size_t sample = 0; sample < keys.size(); ++sample) {
    const Tensor rows_2HL = at::empty({2, heads, length}, at::kLong);
    auto rows = rows_2HL.accessor<int64_t, 3>();
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t query = 0; query < length; ++query) {
        const PairRow words = row(keys[sample], head, query);
        rows[0][head][query] = words.first;
        rows[1][head][query] = words.second;
      }
    }
    const Tensor key = to_device(rows_2HL, device).unsqueeze(-1);
    const Tensor words = mixed(mixed(columns.bitwise_xor(key[0])).bitwise_xor_(key[1]));
    all[static_cast<int64_t>(sample)].copy_(words.ge(static_cast<int64_t>(threshold()))).mul_(kept());
  }
  return all;
}

AttentionDropout attention_dropout(const Dropout& dropout, int64_t layer) {
  if (dropout.attention_rate <= 0) return {};
  TORCH_CHECK_VALUE(dropout.attention_rate < 1, "[dropout] expected a rate below 1, got ", dropout.attention_rate);
  AttentionDropout out{.rate = dropout.attention_rate, .keys = {}};
  for (const int64_t position : dropout.positions) {
    out.keys.push_back(random_key(dropout.seed, Purpose::kDropout, static_cast<uint64_t>(position),
                                  kAttentionPlaces + static_cast<uint64_t>(layer)));
  }
  return out;
}

}  // namespace dalle::layers
