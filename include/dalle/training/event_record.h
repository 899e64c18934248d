// The bytes of TensorBoard's Event messages (its event.proto and summary.proto).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dalle::training {

/// The first record of every event file.
std::string version_event(double wall_time);

/// Tells TensorBoard that a run goes on at `step`: it forgets what earlier files hold for that step and later ones.
std::string session_start_event(double wall_time, int64_t step);

std::string scalars_event(double wall_time, int64_t step, const std::vector<std::pair<std::string, double>>& values);

std::string image_event(double wall_time, int64_t step, const std::string& tag, int64_t height, int64_t width,
                        std::string_view png);

}  // namespace dalle::training
