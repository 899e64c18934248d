#include "dalle/generation/score_images_job.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <iostream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "dalle/cli/command.h"
#include "dalle/core/device.h"
#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/generation/caption_list.h"
#include "dalle/generation/clip_scoring.h"
#include "dalle/models/load.h"
#include "picture_files.h"
#include "score_number.h"

namespace dalle::generation {

void ScoreImagesOptions::validate(const std::string&) const {
  check_picture_files("score-images", images);
  if (clip.empty()) throw ConfigError("score-images: expected --clip CKPT");
  if (caption.empty()) throw ConfigError("score-images: expected --caption TEXT");
  read_captions(caption, /*file=*/"");
  if (!json.empty()) check_output_file("--json", json);
}

int run_score_images(const ScoreImagesOptions& options) {
  const c10::NoGradGuard no_grad;
  set_num_threads(options.threads);
  const at::Device device = select_device(options.device);
  const auto clip = models::load_clip(options.clip, {device, options.precision, !options.raw_weights});
  const auto tokenizer = models::clip_tokenizer(clip);
  const Tensor pictures = picture_features(
      *clip.model, options.images.size(), [&](size_t i) { return read_picture(options.images[i]); },
      [&](size_t i) { return options.images[i].string(); });
  const Tensor text = caption_features(*clip.model, tokenizer, options.caption);
  const Tensor cosines_CN = at::matmul(text, pictures.t()).to(at::kDouble);
  nlohmann::ordered_json report{{"clip", clip.path.string()}, {"clip_identity", clip.identity}};
  report["captions"] = nlohmann::ordered_json::array();
  for (size_t number = 0; number < options.caption.size(); ++number) {
    const std::string& caption = options.caption[number];
    std::vector<size_t> order(options.images.size());
    std::iota(order.begin(), order.end(), size_t{0});
    const double* values = cosines_CN.data_ptr<double>() + number * order.size();
    const auto key = [&](size_t i) { return std::pair(std::isnan(values[i]), std::isnan(values[i]) ? 0 : -values[i]); };
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return key(a) < key(b); });
    std::cout << caption << "\n";
    nlohmann::ordered_json entry{{"caption", caption}, {"images", nlohmann::ordered_json::array()}};
    for (size_t rank = 0; rank < order.size(); ++rank) {
      const std::string file = options.images[order[rank]].string();
      std::cout << "  " << std::setw(3) << rank + 1 << "  " << std::fixed << std::setprecision(4) << values[order[rank]]
                << "  " << file << "\n";
      entry["images"].push_back({{"rank", rank + 1}, {"cosine", score_number(values[order[rank]])}, {"file", file}});
    }
    report["captions"].push_back(std::move(entry));
  }
  if (!options.json.empty()) {
    // The names of files may be any bytes.
    write_file(options.json, report.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  }
  return cli::kDone;
}

}  // namespace dalle::generation
