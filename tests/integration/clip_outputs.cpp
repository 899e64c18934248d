// clip-outputs CLIP IN OUT [CAPTIONS]: raw results of a CLIP for scripts/parity/clip_packages.py. IN: `pixels` f32 [B, 3, S, S] in
// [0, 1], `ids` i64 [B, T], and `picture.NAME` u8 [H, W, 3]. OUT: unit features `image` and `text` [B, E], `seen.NAME` f32
// [3, S, S], the picture as the image tower sees it, and `tokens` i64 [N, T] of the lines of CAPTIONS.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <sstream>

#include "dalle/cli/command.h"
#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/data/transforms.h"
#include "dalle/models/load.h"
#include "dalle/storage/safetensors.h"

int main(int argc, char** argv) {
  using namespace dalle;
  return cli::guarded("clip-outputs", [&] {
    if (argc != 4 && argc != 5) throw ConfigError("usage: clip-outputs CLIP IN.safetensors OUT.safetensors [CAPTIONS]");
    const c10::NoGradGuard no_grad;
    const auto loaded = models::load_clip(argv[1], {.precision = Precision::kF32});
    const models::Clip& clip = *loaded.model;
    storage::SafetensorsFile out;
    for (const auto& [name, tensor] : storage::read_safetensors(argv[2]).tensors) {
      if (name == "pixels") out.tensors.push_back({"image", clip.encode_image(tensor)});
      if (name == "ids") out.tensors.push_back({"text", clip.encode_text(tensor)});
      if (name.starts_with("picture.")) {
        const Tensor picture = data::clip_picture(tensor, clip.config().image_size);
        out.tensors.push_back(
            {"seen." + name.substr(8), clip.normalise(picture.to(at::kFloat).div_(255).unsqueeze(0))[0]});
      }
    }
    if (argc == 5) {
      const auto tokenizer = models::clip_tokenizer(loaded);
      std::vector<Tensor> rows;
      std::istringstream lines(read_file(argv[4]));
      for (std::string line; std::getline(lines, line);)
        rows.push_back(at::tensor(models::clip_text_ids(clip.config(), tokenizer.encode(line)), at::kLong));
      out.tensors.push_back({"tokens", at::stack(rows)});
    }
    storage::write_safetensors(argv[3], out);
    return 0;
  });
}
