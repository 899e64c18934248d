// dvae-outputs CKPT IN OUT: raw results of a dVAE for scripts/parity/openai_dvae.py. The commands write 8-bit pictures, too
// coarse to compare arithmetic by. IN: `pixels` [B, 3, S, S] in [0, 1] and `codes` [B, G, G]; OUT: `codes` of the
// pixels, and of IN's codes `stats` [B, 6, S, S] and `reconstruction` [B, 3, S, S]. All f32 and i64, one picture a pass.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "dalle/cli/command.h"
#include "dalle/core/error.h"
#include "dalle/layers/relaxation.h"
#include "dalle/models/load.h"
#include "dalle/storage/safetensors.h"

int main(int argc, char** argv) {
  using namespace dalle;
  return cli::guarded("dvae-outputs", [&] {
    if (argc != 4) throw ConfigError("usage: dvae-outputs CKPT IN.safetensors OUT.safetensors");
    const c10::NoGradGuard no_grad;
    const auto dvae = models::load_dvae(argv[1], {.precision = Precision::kF32});
    const auto input = storage::read_safetensors(argv[2]).tensors;
    const Tensor *pixels = storage::find_tensor(input, "pixels"), *codes = storage::find_tensor(input, "codes");
    if (pixels == nullptr || codes == nullptr) throw DataError("IN lacks pixels or codes");
    std::vector<Tensor> encoded, stats, reconstruction;
    for (int64_t i = 0; i < pixels->size(0); ++i) {
      const Tensor given = codes->slice(0, i, i + 1);
      encoded.push_back(dvae.model->encode(pixels->slice(0, i, i + 1)));
      stats.push_back(dvae.model->decode_stats(layers::one_hot_codes(given, dvae.model->config().vocab_size)));
      reconstruction.push_back(dvae.model->decode(given));
    }
    storage::write_safetensors(
        argv[3],
        {{{"codes", at::cat(encoded)}, {"stats", at::cat(stats)}, {"reconstruction", at::cat(reconstruction)}}, {}});
    return 0;
  });
}
