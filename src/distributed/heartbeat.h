// A rank's own sign of life in the store, and its look at those of others, in threads of their own: they go on while the
// main thread computes or waits. Rank 0 watches all ranks, the others watch rank 0: a handful of short requests per rank
// and interval. What anyone finds is one key of the store, the first finding counts, and every rank ends with it.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "c10d_communicator.h"
#include "dalle/distributed/liveness.h"

namespace dalle::distributed {

class Heartbeat {
 public:
  /// `store`: a connection that nobody else uses.
  Heartbeat(Store store, const Launch& launch, Watch watch);
  /// As leave(), where the rank has not ended yet.
  ~Heartbeat();
  Heartbeat(const Heartbeat&) = delete;
  Heartbeat& operator=(const Heartbeat&) = delete;

  void note(const std::string& place, Pace pace);
  /// Another collective; returns its number.
  int64_t begin_collective();
  void begin_wait(const std::string& what);
  void end_wait();
  /// For a collective that has failed. Another rank is most probably why: returns only where none is found to be.
  void await_verdict();
  /// Tells the others why this rank ends. If it has not ended soon after, watch.end is called with the same message.
  void fail(const std::string& message);
  /// Says that this rank ends well. Rank 0 waits for the others where it serves the store.
  void leave();

 private:
  struct State;
  std::shared_ptr<State> state_;  // also of the threads, which a store that does not answer may hold back
  std::thread courier_, watchman_;
};

}  // namespace dalle::distributed
