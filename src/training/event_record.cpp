#include "dalle/training/event_record.h"

#include "event.pb.h"

namespace dalle::training {
namespace {

tensorboard::Event make_event(double wall_time, int64_t step) {
  tensorboard::Event event;
  event.set_wall_time(wall_time);
  event.set_step(step);
  return event;
}

}  // namespace

std::string version_event(double wall_time) {
  tensorboard::Event event = make_event(wall_time, 0);
  event.set_file_version("brain.Event:2");
  return event.SerializeAsString();
}

std::string session_start_event(double wall_time, int64_t step) {
  tensorboard::Event event = make_event(wall_time, step);
  event.mutable_session_log()->set_status(tensorboard::SessionLog::START);
  return event.SerializeAsString();
}

std::string scalars_event(double wall_time, int64_t step, const std::vector<std::pair<std::string, double>>& values) {
  tensorboard::Event event = make_event(wall_time, step);
  for (const auto& [tag, number] : values) {
    tensorboard::Summary::Value* value = event.mutable_summary()->add_value();
    value->set_tag(tag);
    value->set_simple_value(static_cast<float>(number));
  }
  return event.SerializeAsString();
}

std::string image_event(double wall_time, int64_t step, const std::string& tag, int64_t height, int64_t width,
                        std::string_view png) {
  constexpr int kRgb = 3;
  tensorboard::Event event = make_event(wall_time, step);
  tensorboard::Summary::Value* value = event.mutable_summary()->add_value();
  value->set_tag(tag);
  value->mutable_image()->set_height(static_cast<int32_t>(height));
  value->mutable_image()->set_width(static_cast<int32_t>(width));
  value->mutable_image()->set_colorspace(kRgb);
  value->mutable_image()->set_encoded_image_string(std::string(png));
  return event.SerializeAsString();
}

}  // namespace dalle::training
