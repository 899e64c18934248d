#include "dalle/distributed/liveness.h"

#include <algorithm>
#include <cstdio>
#include <sstream>

#include "dalle/core/error.h"
#include "dalle/core/str.h"

namespace dalle::distributed {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kLongestInterval{2000}, kShortestSuspicion{1000};

std::string in_seconds(Liveness::Clock::duration time) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f s", std::chrono::duration<double>(time).count());
  return text;
}

}  // namespace

std::string to_text(const Beat& beat) {
  return str(beat.count, " ", beat.progress, " ", beat.collectives, " ", int{beat.waits}, int{beat.open_ended},
             int{beat.broken}, int{beat.ended}, " ", beat.place);
}

Beat parse_beat(const std::string& text) {
  std::istringstream in(text);
  Beat beat;
  std::string flags;
  if (!(in >> beat.count >> beat.progress >> beat.collectives >> flags) || flags.size() != 4) {
    throw Error(Problem{"heartbeat", "three numbers and four flags", "'" + text + "'", ""});
  }
  beat.waits = flags[0] == '1';
  beat.open_ended = flags[1] == '1';
  beat.broken = flags[2] == '1';
  beat.ended = flags[3] == '1';
  in.get();
  std::getline(in, beat.place);
  return beat;
}

LivenessLimits LivenessLimits::of(milliseconds timeout) {
  const milliseconds interval = std::min(timeout / 16, kLongestInterval);
  return {.interval = interval,
          .silent = timeout / 2,
          .suspected = std::max(4 * interval, kShortestSuspicion),
          .stuck = timeout * 6 / 10};
}

std::string last_seen(const Beat& beat) {
  return beat.count < 0 ? "; never heard of before" : "; last seen at " + beat.place;
}

Liveness::Liveness(std::vector<int> ranks, int own, LivenessLimits limits, Clock::time_point now)
    : ranks_(std::move(ranks)), own_(own), limits_(limits), seen_(ranks_.size()) {
  forgive(now);
}

void Liveness::observe(size_t index, const Beat& beat, Clock::time_point now) {
  Seen& seen = seen_.at(index);
  if (beat.count != seen.beat.count) seen.heard = now;
  if (beat.progress != seen.beat.progress) seen.moved = now;
  seen.beat = beat;
}

void Liveness::forgive(Clock::time_point now) {
  for (Seen& seen : seen_) seen.heard = seen.moved = now;
}

Liveness::Clock::duration Liveness::silence_allowed() const {
  const auto is_broken = [](const Seen& seen) { return seen.beat.broken; };
  const bool is_short = is_suspected_ || std::any_of(seen_.begin(), seen_.end(), is_broken);
  return is_short ? std::min(limits_.suspected, limits_.silent) : limits_.silent;
}

std::optional<std::string> Liveness::find_silent(Clock::time_point now) const {
  const auto allowed = silence_allowed();
  std::optional<size_t> found;
  for (size_t i = 0; i < seen_.size(); ++i) {
    const auto& [beat, heard, moved] = seen_[i];
    if (ranks_[i] == own_ || beat.count < 0 || beat.ended || now - heard <= allowed) continue;
    if (!found || seen_[i].heard < seen_[*found].heard) found = i;
  }
  if (!found) return std::nullopt;
  const Seen& seen = seen_[*found];
  return str("rank ", ranks_[*found], " was lost: no sign of life for ", in_seconds(now - seen.heard),
             last_seen(seen.beat),
             "\n  hint: it was killed or stopped, or its machine is cut off: look at its own messages, and at the "
             "kernel's for want of memory");
}

std::optional<std::string> Liveness::find_stuck(Clock::time_point now) const {
  std::optional<size_t> found;
  for (size_t i = 0; i < seen_.size(); ++i) {
    const auto& [beat, heard, moved] = seen_[i];
    if (beat.ended || beat.waits || beat.open_ended || now - moved <= limits_.stuck) continue;
    if (!found || beat.collectives < seen_[*found].beat.collectives) found = i;
  }
  if (!found) return std::nullopt;
  const Seen& lagging = seen_[*found];
  const bool is_waited_for = std::any_of(seen_.begin(), seen_.end(), [&](const Seen& other) {
    const bool is_ahead = other.beat.waits || other.beat.collectives > lagging.beat.collectives;
    return &other != &lagging && !other.beat.ended && is_ahead && now - other.moved > limits_.stuck / 2;
  });
  if (!is_waited_for) return std::nullopt;
  return str("rank ", ranks_[*found], " hangs: it has been at ", lagging.beat.place, " for ",
             in_seconds(now - lagging.moved),
             ", while other ranks wait for it\n  hint: see what that process does (gdb -p PID); where this may take so "
             "long, raise trainer.timeout_seconds");
}

std::optional<std::string> Liveness::verdict(Clock::time_point now) const {
  if (auto silent = find_silent(now)) return silent;
  return find_stuck(now);
}

bool Liveness::others_have_ended(Clock::time_point now) const {
  for (size_t i = 0; i < seen_.size(); ++i) {
    if (ranks_[i] != own_ && !seen_[i].beat.ended && now - seen_[i].heard <= limits_.silent) return false;
  }
  return true;
}

}  // namespace dalle::distributed
