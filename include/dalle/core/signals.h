// Stopping a run by SIGTERM or SIGINT: the first signal asks the loop to save and end, the second one acts as usual.
#pragma once

#include <csignal>

namespace dalle {

/// Catches SIGTERM and SIGINT while it lives and puts the former handlers back afterwards. One at a time.
class StopSignals {
 public:
  /// Without `announces` a signal is caught in silence: one rank speaks for all.
  explicit StopSignals(bool announces = true);
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

 private:
  struct sigaction former_term_ {};
  struct sigaction former_int_ {};
};

/// True once a signal has come since the last StopSignals was made. Cheap: poll it in each step.
bool stop_requested();

/// The signal that came, or 0.
int stop_signal();

}  // namespace dalle
