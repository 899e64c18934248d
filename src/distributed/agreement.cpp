#include "dalle/distributed/agreement.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <exception>

#include "dalle/core/error.h"
#include "dalle/core/str.h"

namespace dalle::distributed {
namespace {

constexpr char kWorked = '+', kConfigError = 'c', kOtherError = 'e';  // first byte of what on_first_rank() sends

}  // namespace

std::vector<std::string> gather_texts(Communicator& communicator, const std::string& text) {
  const Tensor sizes = communicator.all_gather(at::scalar_tensor(static_cast<int64_t>(text.size()), at::kLong));
  const int64_t width = std::max<int64_t>(1, sizes.max().item<int64_t>());
  Tensor row = at::zeros({1, width}, at::kByte);
  std::memcpy(row.mutable_data_ptr<uint8_t>(), text.data(), text.size());
  const Tensor rows = communicator.all_gather(row);
  std::vector<std::string> texts;
  for (int64_t rank = 0; rank < communicator.world_size(); ++rank) {
    const auto* bytes = reinterpret_cast<const char*>(rows.const_data_ptr<uint8_t>() + rank * width);
    texts.emplace_back(bytes, static_cast<size_t>(sizes.const_data_ptr<int64_t>()[rank]));
  }
  return texts;
}

std::optional<Problem> find_difference(Communicator& communicator, const std::vector<Fact>& facts) {
  if (communicator.world_size() == 1) return std::nullopt;
  for (const Fact& fact : facts) {
    const auto values = gather_texts(communicator, fact.value);
    for (size_t rank = 1; rank < values.size(); ++rank) {
      if (values[rank] == values[0]) continue;
      return Problem{.place = str("rank ", rank),
                     .expected = str(fact.name, " ", values[0], ", as rank 0 has"),
                     .got = values[rank],
                     .hint = fact.hint};
    }
  }
  return std::nullopt;
}

void require_agreement(Communicator& communicator, const std::vector<Fact>& facts) {
  if (const auto difference = find_difference(communicator, facts)) throw ConfigError(*difference);
}

std::string on_first_rank(Communicator& communicator, const std::function<std::string()>& act) {
  if (communicator.world_size() == 1) return act();
  std::exception_ptr failure;
  std::string sent;
  if (communicator.rank() == 0) {
    try {
      sent = kWorked + act();
    } catch (const ConfigError& error) {
      failure = std::current_exception();
      sent = kConfigError + std::string(error.what());
    } catch (const std::exception& error) {
      failure = std::current_exception();
      sent = kOtherError + std::string(error.what());
    }
  }
  communicator.await(0);  // whatever it was may have taken long
  sent = gather_texts(communicator, sent).front();
  if (failure) std::rethrow_exception(failure);
  const std::string text = sent.substr(1);
  if (sent.front() == kConfigError) throw ConfigError("rank 0: " + text);
  if (sent.front() == kOtherError) throw Error("rank 0: " + text);
  return text;
}

std::string error_text(const std::exception& error) {
  const auto* of_torch = dynamic_cast<const c10::Error*>(&error);
  return of_torch != nullptr ? of_torch->what_without_backtrace() : error.what();
}

void tell_failure(Communicator& communicator, const std::function<void()>& work) {
  try {
    work();
  } catch (const std::exception& error) {
    communicator.fail(error_text(error));
    communicator.leave();  // while the store lasts, which goes with the communicator where this rank serves it
    throw;
  }
}

}  // namespace dalle::distributed
