#include "dalle/generation/picture_jobs.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <iomanip>
#include <iostream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "dalle/cli/command.h"
#include "dalle/core/device.h"
#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/str.h"
#include "dalle/data/image_codec.h"
#include "dalle/data/transforms.h"
#include "dalle/generation/contact_sheet.h"
#include "dalle/generation/picture_quality.h"
#include "dalle/models/load.h"
#include "dalle/text/tokenizer.h"

namespace dalle::generation {
namespace {

namespace fs = std::filesystem;

void check_pictures(const std::string& command, const std::vector<fs::path>& images) {
  if (images.empty()) throw ConfigError(command + ": expected picture files");
  for (const auto& image : images) {
    if (!fs::is_regular_file(image)) throw ConfigError(Problem{image.string(), "a picture file", "nothing there", ""});
  }
}

Tensor load_pixels(const fs::path& path, int64_t size, data::ResizeFilter filter, bool upscale) {
  try {
    const Tensor decoded = data::decode_picture(read_file(path));
    const data::TransformOptions transform{.image_size = size, .filter = filter, .upscale_small = upscale};
    return data::transform_picture(decoded, transform, {}).to(at::kFloat).div_(255);
  } catch (const DataError& error) {
    throw DataError(path.string() + ": " + error.what());
  }
}

// Names of outputs: the pictures' stems, numbered where two are the same.
std::vector<std::string> output_names(const std::vector<fs::path>& images) {
  std::vector<std::string> names;
  std::set<std::string> used;
  for (const auto& image : images) {
    std::string name = image.stem().string();
    for (int number = 2; !used.insert(name).second; ++number) name = str(image.stem().string(), "-", number);
    names.push_back(name);
  }
  return names;
}

std::string tokens_json(const Tensor& codes_HW) {
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (int64_t row = 0; row < codes_HW.size(0); ++row) {
    const Tensor line = codes_HW[row].contiguous();
    json.push_back(std::vector<int64_t>(line.data_ptr<int64_t>(), line.data_ptr<int64_t>() + line.size(0)));
  }
  return json.dump() + "\n";
}

}  // namespace

void ReconstructOptions::validate(const std::string&) const {
  check_pictures("reconstruct", images);
  if (dvae.empty()) throw ConfigError("reconstruct: expected --dvae CKPT");
  if (out.empty()) throw ConfigError("reconstruct: expected --out DIR");
  if (fs::exists(out) && !(fs::is_directory(out) && fs::is_empty(out))) {
    throw ConfigError(
        Problem{"--out " + out.string(), "a folder that does not exist yet or is empty", "one with files in it", ""});
  }
}

int run_reconstruct(const ReconstructOptions& options) {
  const c10::NoGradGuard no_grad;
  set_num_threads(options.threads);
  const at::Device device = select_device(options.device);
  const auto dvae = models::load_dvae(options.dvae, {device, options.precision, !options.raw_weights});
  const int64_t size = options.size > 0 ? options.size : dvae.model->config().image_size;
  std::vector<Tensor> pictures;
  for (const auto& image : options.images)
    pictures.push_back(load_pixels(image, size, data::ResizeFilter::kLanczos, false));
  fs::create_directories(options.out);
  const auto names = output_names(options.images);
  std::vector<SheetRow> rows;
  double total = 0;
  for (size_t i = 0; i < pictures.size(); ++i) {
    const Tensor pixels = pictures[i].unsqueeze(0);
    const Tensor codes = dvae.model->encode(pixels.to(device));
    const Tensor decoded = dvae.model->decode(codes).to(at::kCPU);
    const double decibels = psnr(pixels, decoded).item<double>(), similarity = ssim(pixels, decoded).item<double>();
    total += decibels;
    std::cout << std::fixed << std::setprecision(2) << options.images[i].string() << ": PSNR " << decibels
              << " dB, SSIM " << std::setprecision(4) << similarity << "\n";
    write_png(options.out / (names[i] + ".png"), at::cat({pixels[0], decoded[0]}, 2));
    if (options.save_tokens) write_file(options.out / (names[i] + ".tokens.json"), tokens_json(codes[0].to(at::kCPU)));
    rows.push_back({names[i],
                    {{.picture = pixels[0]},
                     {.picture = decoded[0], .label = str(std::fixed, std::setprecision(2), decibels, " dB")}}});
  }
  std::cout << std::fixed << std::setprecision(2) << "mean PSNR " << total / static_cast<double>(pictures.size())
            << " dB over " << pictures.size() << " pictures; " << (options.out / "contact-sheet.png").string() << "\n";
  write_png(options.out / "contact-sheet.png", labelled_rows(rows, {.title = "reconstruction by the dVAE",
                                                                    .column_titles = {"picture", "reconstruction"}}));
  return cli::kDone;
}

void ScoreImagesOptions::validate(const std::string&) const {
  check_pictures("score-images", images);
  if (clip.empty()) throw ConfigError("score-images: expected --clip CKPT");
  if (caption.empty()) throw ConfigError("score-images: expected --caption TEXT");
}

int run_score_images(const ScoreImagesOptions& options) {
  const c10::NoGradGuard no_grad;
  set_num_threads(options.threads);
  const at::Device device = select_device(options.device);
  const auto clip = models::load_clip(options.clip, {device, options.precision, !options.raw_weights});
  const auto& config = clip.model->config();
  const auto tokenizer = text::Tokenizer::from_bytes(clip.tokenizer);
  std::vector<Tensor> features;
  for (const auto& image : options.images) {
    const Tensor pixels = load_pixels(image, config.image_size, data::ResizeFilter::kBicubic, true);
    features.push_back(clip.model->encode_image(pixels.unsqueeze(0).to(device)));
  }
  nlohmann::ordered_json report{{"clip", clip.path.string()}, {"clip_identity", clip.identity}};
  report["captions"] = nlohmann::ordered_json::array();
  for (const auto& caption : options.caption) {
    const auto ids = models::clip_text_ids(config, tokenizer.encode(caption));
    const Tensor text = clip.model->encode_text(at::tensor(ids, at::kLong).unsqueeze(0).to(device));
    const Tensor cosines = at::matmul(at::cat(features), text.t()).squeeze(1).to(at::kCPU).to(at::kDouble);
    std::vector<size_t> order(options.images.size());
    std::iota(order.begin(), order.end(), size_t{0});
    const double* values = cosines.data_ptr<double>();
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return values[a] > values[b]; });
    std::cout << caption << "\n";
    nlohmann::ordered_json entry{{"caption", caption}, {"images", nlohmann::ordered_json::array()}};
    for (size_t rank = 0; rank < order.size(); ++rank) {
      const std::string file = options.images[order[rank]].string();
      std::cout << "  " << std::setw(3) << rank + 1 << "  " << std::fixed << std::setprecision(4) << values[order[rank]]
                << "  " << file << "\n";
      entry["images"].push_back({{"rank", rank + 1}, {"cosine", values[order[rank]]}, {"file", file}});
    }
    report["captions"].push_back(std::move(entry));
  }
  if (!options.json.empty()) write_file(options.json, report.dump(2) + "\n");
  return cli::kDone;
}

}  // namespace dalle::generation
