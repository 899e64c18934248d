#include "heartbeat.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include "dalle/core/str.h"

namespace dalle::distributed {
namespace {

using Clock = Liveness::Clock;
using std::chrono::milliseconds;

constexpr const char* kVerdictKey = "verdict";
constexpr milliseconds kLongestGrace{2000}, kShortestGrace{500};
constexpr milliseconds kFarewell{5000};  // for the others to take note, where this rank serves the store

std::string beat_key(int rank) { return str("beat/", rank); }

std::string text_of(const std::vector<uint8_t>& bytes) { return {bytes.begin(), bytes.end()}; }

std::vector<int> watched_by(int rank, int world_size) {
  if (rank != 0) return {0};
  std::vector<int> all(static_cast<size_t>(world_size));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

}  // namespace

struct Heartbeat::State {
  State(Store given_store, const Launch& launch, Watch given_watch)
      : store(c10::make_intrusive<c10d::PrefixStore>("heartbeat", std::move(given_store))),
        rank(launch.rank),
        serves_store(launch.rank == 0 && !launch.store_is_served),
        server(launch.store_is_served ? "the launcher" : "rank 0"),
        store_place(str(launch.address, ":", launch.port)),
        watch(std::move(given_watch)),
        limits(LivenessLimits::of(watch.timeout)),
        grace(std::clamp(watch.timeout / 8, kShortestGrace, kLongestGrace)),
        last_words(std::clamp(watch.timeout / 8, kShortestGrace, kFarewell)),
        liveness(watched_by(rank, launch.world_size), rank, limits, Clock::now()) {}

  void carry();
  void make_round();
  void stand_guard();
  std::optional<std::string> find_problem(Clock::time_point now);
  std::string lost_store(const std::string& how) const;
  std::string place() const;
  void end_by(std::unique_lock<std::mutex>& lock, const std::string& message);
  bool may_stop(Clock::time_point now) const {
    const milliseconds patience = is_ending ? last_words : kFarewell;
    return !serves_store || liveness.others_have_ended(now) || now > ended_at + patience;
  }

  const Store store;
  const int rank;
  const bool serves_store;
  const std::string server, store_place;
  const Watch watch;
  const LivenessLimits limits;
  const milliseconds grace;  // for the main thread to come to its own error, before another's is taken for this rank's
  const milliseconds last_words;  // for the others to read a finding before this rank ends by it

  std::mutex mutex;
  std::condition_variable changed;
  Liveness liveness;
  Beat own{.count = 0, .open_ended = true, .place = "the meeting of ranks"};
  int waits = 0;
  std::string wait_text;
  std::string to_publish;  // what this rank has found, or its own error
  std::string verdict;     // what counts for all
  std::string failure;     // this rank's own error
  std::string store_error;
  Clock::time_point round_began = Clock::now(), trouble_began, ended_at;
  bool is_under_way = false;  // a round
  bool has_trouble = false, hurries = false;
  bool carrier_is_done = false, is_ending = false, has_ended = false, guard_ends = false;
};

std::string Heartbeat::State::place() const {
  return waits > 0 && !wait_text.empty() ? own.place + ", waiting in " + wait_text : own.place;
}

std::string Heartbeat::State::lost_store(const std::string& how) const {
  std::string text = str(server, " was lost: the store that it serves at ", store_place, " ", how);
  if (server == "rank 0" && rank != 0) text += last_seen(liveness.last(0));
  return text + "\n  hint: look at that process's own messages, and at the kernel's for want of memory";
}

/// One beat out, the others' in. Requests are made without the lock: a server that is stopped answers none.
void Heartbeat::State::make_round() {
  std::unique_lock lock(mutex);
  ++own.count;
  Beat beat = own;
  beat.place = place();
  beat.waits = waits > 0;
  const std::string finding = to_publish;
  round_began = Clock::now();
  is_under_way = true;
  lock.unlock();

  store->set(beat_key(rank), to_text(beat));
  std::string found;
  if (!finding.empty()) {
    found = store->compareSet(kVerdictKey, "", finding);
  } else if (store->check({kVerdictKey})) {
    found = store->get_to_str(kVerdictKey);
  }
  std::vector<size_t> come;
  std::vector<std::string> keys;
  for (size_t i = 0; i < liveness.ranks().size(); ++i) {
    const std::string key = beat_key(liveness.ranks()[i]);
    if (liveness.last(i).count < 0 && !store->check({key})) continue;
    come.push_back(i);
    keys.push_back(key);
  }
  const auto values = keys.empty() ? std::vector<std::vector<uint8_t>>{} : store->multiGet(keys);

  lock.lock();
  is_under_way = false;
  for (size_t k = 0; k < come.size(); ++k) liveness.observe(come[k], parse_beat(text_of(values[k])), Clock::now());
  if (verdict.empty()) verdict = found;
  if (to_publish == finding) to_publish.clear();
}

void Heartbeat::State::carry() {
  try {
    while (true) {
      bool was_ended = false;
      {
        const std::lock_guard lock(mutex);
        was_ended = own.ended;
      }
      make_round();
      std::unique_lock lock(mutex);
      changed.notify_all();
      if (was_ended && to_publish.empty() && may_stop(Clock::now())) break;
      const milliseconds pause =
          own.ended || own.broken ? std::min(limits.interval, milliseconds(100)) : limits.interval;
      changed.wait_for(lock, pause, [&] { return std::exchange(hurries, false); });
    }
  } catch (const std::exception& error) {
    const std::lock_guard lock(mutex);
    store_error = error.what();
  }
  const std::lock_guard lock(mutex);
  carrier_is_done = true;
  changed.notify_all();
}

/// What ends this rank, or nothing. An error that another rank has told, and the end of the store, may be what all ranks
/// come to by themselves, each with its own message and exit code; they are given a moment for it.
std::optional<std::string> Heartbeat::State::find_problem(Clock::time_point now) {
  if (!verdict.empty() || !store_error.empty()) {
    if (!std::exchange(has_trouble, true)) trouble_began = now;
    if (now - trouble_began < grace) return std::nullopt;
    return verdict.empty() ? lost_store("no longer answers") : verdict;
  }
  if (is_under_way && now - round_began > liveness.silence_allowed()) return lost_store("does not answer");
  if (auto lost = liveness.verdict(now); lost && to_publish.empty()) {
    to_publish = *lost;
    hurries = true;
    changed.notify_all();
  }
  return std::nullopt;
}

void Heartbeat::State::end_by(std::unique_lock<std::mutex>& lock, const std::string& message) {
  is_ending = own.ended = true;
  ended_at = Clock::now();
  hurries = true;
  changed.notify_all();
  changed.wait_for(lock, last_words, [&] { return carrier_is_done; });
  lock.unlock();
  watch.end(message);
  lock.lock();
  has_ended = true;
  changed.notify_all();
}

void Heartbeat::State::stand_guard() {
  std::unique_lock lock(mutex);
  Clock::time_point woken = Clock::now();
  while (!guard_ends) {
    changed.wait_for(lock, std::min(limits.interval / 2, milliseconds(100)), [&] { return guard_ends; });
    const auto now = Clock::now();
    if (now - woken > limits.suspected / 2) {  // this process was stopped, and knows nothing of the time between
      liveness.forgive(now);
      round_began = now;
    }
    woken = now;
    if (guard_ends || is_ending) continue;
    if (!failure.empty()) {
      if (now - ended_at > watch.timeout / 2) end_by(lock, failure);
    } else if (!own.ended) {
      if (const auto problem = find_problem(now)) end_by(lock, *problem);
    }
  }
}

Heartbeat::Heartbeat(Store store, const Launch& launch, Watch watch)
    : state_(std::make_shared<State>(std::move(store), launch, std::move(watch))),
      courier_([state = state_] { state->carry(); }),
      watchman_([state = state_] { state->stand_guard(); }) {}

Heartbeat::~Heartbeat() {
  leave();
  {
    const std::lock_guard lock(state_->mutex);
    state_->guard_ends = true;
    state_->changed.notify_all();
    // A store that does not answer would hold this up for ever.
    if (!state_->carrier_is_done) courier_.detach();
  }
  if (courier_.joinable()) courier_.join();
  watchman_.join();
}

void Heartbeat::note(const std::string& place, Pace pace) {
  const std::lock_guard lock(state_->mutex);
  ++state_->own.progress;
  state_->own.place = place;
  state_->own.open_ended = pace == Pace::kOpenEnded;
}

int64_t Heartbeat::begin_collective() {
  const std::lock_guard lock(state_->mutex);
  ++state_->own.progress;
  return ++state_->own.collectives;
}

void Heartbeat::begin_wait(const std::string& what) {
  const std::lock_guard lock(state_->mutex);
  ++state_->own.progress;
  ++state_->waits;
  state_->wait_text = what;
}

void Heartbeat::end_wait() {
  const std::lock_guard lock(state_->mutex);
  ++state_->own.progress;
  --state_->waits;
}

void Heartbeat::await_verdict() {
  State& state = *state_;
  std::unique_lock lock(state.mutex);
  state.own.broken = true;
  state.liveness.suspect();
  state.hurries = true;
  state.changed.notify_all();
  // Long enough to find a rank silent; what is found then ends this process. Time in which this process was stopped does
  // not count, as it does not for the finding.
  const Clock::duration limit = state.limits.suspected + 4 * state.limits.interval, pause = state.limits.interval / 2;
  Clock::duration waited{};
  const auto is_over = [&] {
    const bool has_reason =
        !state.to_publish.empty() || !state.verdict.empty() || !state.store_error.empty() || state.is_ending;
    return state.has_ended || !state.failure.empty() || (!has_reason && waited > limit);
  };
  while (!is_over()) {
    const auto start = Clock::now();
    state.changed.wait_for(lock, pause);
    waited += std::min<Clock::duration>(Clock::now() - start, 2 * pause);
  }
}

void Heartbeat::fail(const std::string& message) {
  State& state = *state_;
  std::unique_lock lock(state.mutex);
  if (state.own.ended) return;
  state.failure = message;
  state.to_publish = str("rank ", state.rank, " failed at ", state.place(), ": ", message);
  state.own.ended = state.hurries = true;
  state.ended_at = Clock::now();
  state.changed.notify_all();
  state.changed.wait_for(lock, kLongestGrace, [&] { return state.to_publish.empty() || state.carrier_is_done; });
}

void Heartbeat::leave() {
  State& state = *state_;
  std::unique_lock lock(state.mutex);
  if (!state.own.ended) {
    state.own.ended = state.hurries = true;
    state.ended_at = Clock::now();
    state.changed.notify_all();
  }
  state.changed.wait_for(lock, kFarewell + kLongestGrace, [&] { return state.carrier_is_done; });
}

}  // namespace dalle::distributed
