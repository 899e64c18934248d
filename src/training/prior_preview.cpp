#include "dalle/training/prior_preview.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <numeric>

#include "dalle/generation/token_sampler.h"

namespace dalle::training {
namespace {

constexpr int64_t kSamplesPerCaption = 4;

}  // namespace

Sheet sample_sheet(const models::Prior& prior, const models::Dvae& dvae, const std::vector<PreviewCaption>& captions,
                   const std::function<Tensor(const std::string&)>& ids_of, const PreviewOptions& options) {
  const c10::NoGradGuard no_grad;
  const int64_t grid = dvae.config().grid_size();
  std::vector<int64_t> numbers(kSamplesPerCaption);
  std::iota(numbers.begin(), numbers.end(), 0);
  const bool have_originals = !captions.empty() && captions.front().codes_I.defined();
  const bool have_pictures = !captions.empty() && captions.front().picture.defined();
  std::vector<generation::SheetRow> rows;
  for (const auto& [caption, picture, codes_I] : captions) {
    generation::SheetRow row{caption, {}};
    if (have_pictures) row.cells.push_back({.picture = picture});
    if (have_originals) row.cells.push_back({.picture = dvae.decode(codes_I.view({1, grid, grid}))[0]});
    const auto drawn =
        generation::sample_tokens(prior, {caption, ids_of(caption), {}}, numbers, {.filter = {}, .seed = options.seed});
    const Tensor pictures = dvae.decode(drawn.tokens_BI.view({kSamplesPerCaption, grid, grid}));
    for (auto& cell : generation::make_cells(pictures)) row.cells.push_back(std::move(cell));
    rows.push_back(std::move(row));
  }
  generation::SheetOptions sheet{.cell_size = 96, .title = options.title};
  if (have_pictures) sheet.column_titles.emplace_back("picture");
  if (have_originals) sheet.column_titles.emplace_back("dVAE");
  for (const int64_t number : numbers) sheet.column_titles.push_back("sample " + std::to_string(number));
  return {options.name, generation::labelled_rows(rows, sheet)};
}

Tensor code_colours(const Tensor& codes_BI, int64_t grid_size) {
  // Low-discrepancy steps (the plastic number) through the cube of colours, away from black and white.
  const Tensor codes = codes_BI.to(at::kCPU, at::kDouble);
  std::vector<Tensor> channels;
  for (const double step : {0.8191725133961645, 0.6710436067037893, 0.5497004779019703}) {
    channels.push_back((codes * step + 0.5).frac().mul(0.85).add(0.1).view({-1, grid_size, grid_size}));
  }
  return at::stack(channels, 1).to(at::kFloat);
}

}  // namespace dalle::training
