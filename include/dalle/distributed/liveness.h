// Which rank is lost, told from what ranks say of themselves: no clock, no store and no thread here. Times are the reader's
// own, so ranks' clocks need not agree.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace dalle::distributed {

/// What a rank says of itself, again and again.
struct Beat {
  int64_t count = -1;       // of its beats; -1: none has come
  int64_t progress = 0;     // grows whenever the rank gets on: another place, a collective begun, a wait ended
  int64_t collectives = 0;  // begun so far
  bool waits = false;       // for other ranks
  bool open_ended = false;  // at a place that may take any time
  bool broken = false;      // a collective has failed here, for want of another rank
  bool ended = false;       // has nothing to do with the others any more, well or not
  std::string place;        // "step 12, backward pass"
};

std::string to_text(const Beat& beat);
/// Throws Error where it is no such text.
Beat parse_beat(const std::string& text);

/// All follow from the time within which every rank must have stopped, so that finding out and telling the others fit in it.
struct LivenessLimits {
  std::chrono::milliseconds interval;   // between beats: T / 16, 2 s at most
  std::chrono::milliseconds silent;     // without a beat: lost. T / 2
  std::chrono::milliseconds suspected;  // the same once a collective has failed somewhere: 4 intervals, 1 s at least
  std::chrono::milliseconds stuck;      // at one place while others wait: hung. 0.6 T

  static LivenessLimits of(std::chrono::milliseconds timeout);
};

class Liveness {
 public:
  using Clock = std::chrono::steady_clock;

  /// Watches `ranks` (of which `own` may be one) from now on.
  Liveness(std::vector<int> ranks, int own, LivenessLimits limits, Clock::time_point now);

  /// Ranks that are watched, in the order of observe().
  const std::vector<int>& ranks() const { return ranks_; }
  /// What ranks()[index] last said.
  void observe(size_t index, const Beat& beat, Clock::time_point now);
  /// The reader itself has slept (its process or machine was stopped): whatever has been measured starts again.
  void forgive(Clock::time_point now);

  /// A collective has failed here: from now on a rank is lost after a shorter silence.
  void suspect() { is_suspected_ = true; }
  /// How long a rank may be silent. Shorter where this or any watched rank has seen a collective fail.
  Clock::duration silence_allowed() const;

  /// Which rank is lost, why and where it was last seen: text for the user. Nothing while all is well. A rank is lost that
  /// has given beats and then none for too long (one that never came is a matter of the meeting); else the one that hangs: of those that stay at one place for too long, without
  /// waiting for others and at no open-ended place, the one with the fewest collectives, where another is ahead of it
  /// and waits. A rank that is merely slow, or waits for such a one, is not.
  std::optional<std::string> verdict(Clock::time_point now) const;

  /// Whether every other rank has ended or is lost.
  bool others_have_ended(Clock::time_point now) const;
  const Beat& last(size_t index) const { return seen_.at(index).beat; }

 private:
  struct Seen {
    Beat beat;
    Clock::time_point heard, moved;  // when count and progress were last seen to change
  };
  std::optional<std::string> find_silent(Clock::time_point now) const;
  std::optional<std::string> find_stuck(Clock::time_point now) const;

  std::vector<int> ranks_;
  int own_;
  LivenessLimits limits_;
  std::vector<Seen> seen_;
  bool is_suspected_ = false;
};

/// "; last seen at PLACE", or that it was never heard of.
std::string last_seen(const Beat& beat);

}  // namespace dalle::distributed
