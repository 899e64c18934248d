// What a trainer reads and how pictures are prepared, as config keys.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dalle/core/enum_names.h"
#include "dalle/data/image_codec.h"
#include "dalle/data/source.h"
#include "dalle/data/transforms.h"

namespace dalle::data {

enum class CaptionChoice { kDraw, kFirst };

struct DataConfig {
  std::vector<SourceConfig> sources;
  Augmentation augmentation = Augmentation::kStage1;
  bool horizontal_flip = false;
  ResizeFilter resize_filter = ResizeFilter::kArea;
  bool upscale_small = false;
  std::string background = "white";
  CaptionChoice caption = CaptionChoice::kDraw;
  int64_t num_streams = 16;
  int loader_threads = 1;
  int64_t prefetch_batches = 4;
  double max_bad_share = 0.01;

  static void visit_fields(auto& self, auto&& field) {
    field("sources", self.sources, "data sets, read as one");
    field("augmentation", self.augmentation,
          "crops and sizes: stage1 and stage2 as in the paper's listings, none = shorter side to size and centre crop");
    field("horizontal_flip", self.horizontal_flip,
          "mirror half of the pictures (paper: in stage 1 only, pictures may hold text)");
    field("resize_filter", self.resize_filter, "filter of augmentation none; the stages use area");
    field("upscale_small", self.upscale_small,
          "enlarge pictures below the picture size instead of counting them as bad");
    field("background", self.background, "colour under transparent pixels: white, black or #rrggbb");
    field("caption", self.caption, "of several captions: draw one each time, or take the first");
    field("num_streams", self.num_streams, "virtual streams an epoch is cut into; part of the order of samples",
          {.min = 1});
    field("loader_threads", self.loader_threads, "threads that read and decode",
          {.min = 1, .max = 256, .changeable = true});
    field("prefetch_batches", self.prefetch_batches, "batches prepared ahead",
          {.min = 1, .max = 4096, .unit = "batches", .changeable = true});
    field("max_bad_share", self.max_bad_share, "share of unusable pictures above which the run fails",
          {.min = 0, .max = 1, .changeable = true});
  }
  /// `place` names the section in messages. Throws ConfigError.
  void validate(const std::string& place) const;
};

/// "white", "black" or "#rrggbb". Throws ConfigError.
Background parse_background(const std::string& text);

/// The transform that a config asks for at a picture size.
TransformOptions transform_options(const DataConfig& config, int64_t image_size);

}  // namespace dalle::data

namespace dalle {
template <>
struct EnumNames<data::CaptionChoice> {
  static constexpr EnumName<data::CaptionChoice> values[] = {{data::CaptionChoice::kDraw, "draw"},
                                                             {data::CaptionChoice::kFirst, "first"}};
};
}  // namespace dalle
