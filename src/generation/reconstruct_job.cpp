#include "dalle/generation/reconstruct_job.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>

#include "dalle/cli/command.h"
#include "dalle/core/device.h"
#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/str.h"
#include "dalle/generation/contact_sheet.h"
#include "dalle/generation/picture_quality.h"
#include "dalle/models/load.h"
#include "picture_files.h"

namespace dalle::generation {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSheetStem = "contact-sheet";
constexpr size_t kSheetRows = 64;
constexpr int64_t kPairGap = 4;  // white, between the two pictures
constexpr int64_t kCellSize = 192;

// Results are named by the pictures' stems, so each stem must be there once.
void check_stems(const std::vector<fs::path>& images) {
  std::map<std::string, fs::path> seen{{kSheetStem, "the sheet of all pictures"}};
  for (const auto& image : images) {
    const auto [other, is_new] = seen.emplace(image.stem().string(), image);
    if (is_new) continue;
    throw ConfigError(Problem{.place = image.string(),
                              .expected = "pictures whose names without ending differ: results are named by them",
                              .got = str("the name of ", other->second.string()),
                              .hint = "rename one, or use two runs"});
  }
}

int64_t checked_size(int64_t wanted, const models::DvaeConfig& config) {
  if (wanted == 0) return config.image_size;
  if (wanted % config.downsampling() == 0) return wanted;
  throw ConfigError(Problem{
      .place = "--size",
      .expected = str("a multiple of ", config.downsampling(), ", the dVAE's downsampling"),
      .got = str(wanted),
      .hint = str("for example ", std::max<int64_t>(1, wanted / config.downsampling()) * config.downsampling())});
}

std::string tokens_json(const Tensor& codes_HW) {
  std::string text = "[";
  for (int64_t row = 0; row < codes_HW.size(0); ++row) {
    const Tensor line = codes_HW[row].contiguous();
    const int64_t* codes = line.const_data_ptr<int64_t>();
    text += (row == 0 ? "\n " : ",\n ") + nlohmann::json(std::vector<int64_t>(codes, codes + line.size(0))).dump();
  }
  return text + "\n]\n";
}

// JSON has no infinity, which is the PSNR of equal pictures.
nlohmann::ordered_json number_json(double value) {
  if (std::isfinite(value)) return value;
  return value > 0 ? "inf" : "nan";
}

Tensor side_by_side(const Tensor& left_3HW, const Tensor& right_3HW) {
  const Tensor gap = at::ones({3, left_3HW.size(1), kPairGap});
  return at::cat({left_3HW, gap, right_3HW}, 2);
}

// On the sheet: small pictures in whole multiples, so that their pixels stay squares of one size.
int64_t cell_size(int64_t size) {
  return size < kCellSize ? (kCellSize + size - 1) / size * size : std::min<int64_t>(size, 256);
}

std::string quality_text(double decibels, double similarity) {
  return str(std::fixed, std::setprecision(2), "PSNR ", decibels, " dB, SSIM ", std::setprecision(4), similarity);
}

class Reconstruction {
 public:
  explicit Reconstruction(const ReconstructOptions& options)
      : options_(options),
        device_(select_device(options.device)),
        dvae_(models::load_dvae(options.dvae, {device_, options.precision, !options.raw_weights})),
        size_(checked_size(options.size, dvae_.model->config())) {
    for (const auto& image : options.images) {
      pictures_.push_back(load_picture(image, size_, data::ResizeFilter::kLanczos));
    }
  }

  int run() {
    OutputFolder out(options_.out);
    for (size_t i = 0; i < pictures_.size(); ++i) add(i, out);
    const auto count = static_cast<double>(pictures_.size());
    const std::string means = quality_text(total_psnr_ / count, total_ssim_ / count);
    write_sheet(means, out);
    const nlohmann::ordered_json report{{"format", "dalle.cpp reconstruction"},
                                        {"version", 1},
                                        {"dvae", {{"path", dvae_.path.string()}, {"identity", dvae_.identity}}},
                                        {"size", size_},
                                        {"grid_size", size_ / dvae_.model->config().downsampling()},
                                        {"mean_psnr", number_json(total_psnr_ / count)},
                                        {"mean_ssim", number_json(total_ssim_ / count)},
                                        {"pictures", entries_}};
    write_file(out / "reconstruction.json",
               report.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
    out.commit();
    std::cout << "mean of " << pictures_.size() << ": " << means << "; "
              << (options_.out / str(kSheetStem, ".png")).string() << "\n";
    return cli::kDone;
  }

 private:
  void add(size_t i, const OutputFolder& out) {
    const std::string file = options_.images[i].string(), name = options_.images[i].stem().string();
    const Tensor pixels = pictures_[i].to(at::kFloat).div_(255).unsqueeze(0);
    const Tensor codes = dvae_.model->encode(pixels.to(device_));
    const Tensor decoded = dvae_.model->decode(codes).to(at::kCPU, at::kFloat);
    const double decibels = psnr(pixels, decoded).item<double>(), similarity = ssim(pixels, decoded).item<double>();
    total_psnr_ += decibels;
    total_ssim_ += similarity;
    std::cout << file << ": " << quality_text(decibels, similarity) << "\n";
    write_png(out / (name + ".png"), side_by_side(pixels[0], decoded[0]));
    if (options_.save_tokens) write_file(out / (name + ".tokens.json"), tokens_json(codes[0].to(at::kCPU)));
    entries_.push_back(
        {{"file", file}, {"pair", name + ".png"}, {"psnr", number_json(decibels)}, {"ssim", number_json(similarity)}});
    if (rows_.size() < kSheetRows) {
      rows_.push_back({name,
                       {{.picture = pixels[0]},
                        {.picture = decoded[0],
                         .label = str(std::fixed, std::setprecision(2), decibels, " dB, SSIM ", std::setprecision(3),
                                      similarity)}}});
    }
  }

  void write_sheet(const std::string& means, const OutputFolder& out) const {
    const std::string count = rows_.size() < pictures_.size()
                                  ? str("the first ", rows_.size(), " of ", pictures_.size(), " pictures")
                                  : str(pictures_.size(), pictures_.size() == 1 ? " picture" : " pictures");
    const SheetOptions sheet{.cell_size = cell_size(size_),
                             .title = "Reconstruction by the dVAE",
                             .subtitle = str(count, ", ", size_, "x", size_, "; mean ", means),
                             .column_titles = {"picture", "reconstruction"},
                             .row_label_width = 140,
                             .enlarge = Enlarge::kPixels};
    write_png(out / str(kSheetStem, ".png"), labelled_rows(rows_, sheet));
  }

  const ReconstructOptions& options_;
  at::Device device_;
  models::Loaded<models::Dvae> dvae_;
  int64_t size_;
  std::vector<Tensor> pictures_;  // u8 [3, S, S]: all are read before anything is written
  std::vector<SheetRow> rows_;
  nlohmann::ordered_json entries_ = nlohmann::ordered_json::array();
  double total_psnr_ = 0;
  double total_ssim_ = 0;
};

}  // namespace

void ReconstructOptions::validate(const std::string&) const {
  check_picture_files("reconstruct", images);
  if (dvae.empty()) throw ConfigError("reconstruct: expected --dvae CKPT, the dVAE's checkpoint");
  if (out.empty()) throw ConfigError("reconstruct: expected --out DIR, a folder for the results");
  check_stems(images);
  check_output_folder(out);
}

int run_reconstruct(const ReconstructOptions& options) {
  const c10::NoGradGuard no_grad;
  set_num_threads(options.threads);
  return Reconstruction(options).run();
}

}  // namespace dalle::generation
