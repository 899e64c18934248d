// Short texts between ranks: what all of them must have the same, and what the first rank does for all.
#pragma once

#include <exception>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "dalle/core/error.h"
#include "dalle/distributed/communicator.h"

namespace dalle::distributed {

/// Every rank's text, in rank order.
std::vector<std::string> gather_texts(Communicator& communicator, const std::string& text);

/// Something that each rank knows for itself and that must be the same on all.
struct Fact {
  std::string name;   // "config"
  std::string value;  // what a message can show: short, or a hash
  std::string hint;   // what to do where ranks differ
};

/// The first fact in which a rank differs from rank 0: names the rank, the fact, and both values. The same on every rank;
/// each must call it with the same names in the same order.
std::optional<Problem> find_difference(Communicator& communicator, const std::vector<Fact>& facts);
/// Throws it as ConfigError on every rank.
void require_agreement(Communicator& communicator, const std::vector<Fact>& facts);

/// Calls `act` on rank 0 and gives its text to all ranks. Where it throws, every rank throws: rank 0 what it threw, the
/// others the same message as ConfigError (or, where it was none, as Error), so that nobody waits for a rank that is gone.
std::string on_first_rank(Communicator& communicator, const std::function<std::string()>& act);

/// What an exception says, without the trace that LibTorch's carry.
std::string error_text(const std::exception& error);

/// Calls `work`. Where it throws, the other ranks are told before anything outside of it is torn down.
void tell_failure(Communicator& communicator, const std::function<void()>& work);

}  // namespace dalle::distributed
