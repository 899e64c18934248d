#include "dalle/core/signals.h"

#include <c10/util/Exception.h>
#include <unistd.h>

#include <cerrno>
#include <string_view>

namespace dalle {
namespace {

volatile std::sig_atomic_t received_signal = 0;
volatile std::sig_atomic_t is_terminal = 0;
volatile std::sig_atomic_t is_announced = 1;
bool is_installed = false;

// Only async-signal-safe calls: sigaction and write.
void on_signal(int signal) {
  const int saved_errno = errno;
  received_signal = signal;
  struct sigaction standard {};
  standard.sa_handler = SIG_DFL;
  sigaction(SIGTERM, &standard, nullptr);
  sigaction(SIGINT, &standard, nullptr);
  if (!is_announced) {
    errno = saved_errno;
    return;
  }
  // On a terminal the live line is erased first; the loop draws it again below the message.
  constexpr std::string_view kMessage = "\r\033[Kstopping after this step; saving\n";
  constexpr size_t kErasePrefix = 4;
  const std::string_view text = is_terminal ? kMessage : kMessage.substr(kErasePrefix);
  [[maybe_unused]] const ssize_t ignored = ::write(STDERR_FILENO, text.data(), text.size());
  errno = saved_errno;
}

}  // namespace

StopSignals::StopSignals(bool announces) {
  TORCH_INTERNAL_ASSERT(!is_installed, "two StopSignals at a time");
  is_installed = true;
  received_signal = 0;
  is_announced = announces ? 1 : 0;
  is_terminal = ::isatty(STDERR_FILENO);
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  sigaction(SIGTERM, &action, &former_term_);
  sigaction(SIGINT, &action, &former_int_);
}

StopSignals::~StopSignals() {
  sigaction(SIGTERM, &former_term_, nullptr);
  sigaction(SIGINT, &former_int_, nullptr);
  is_installed = false;
}

bool stop_requested() { return received_signal != 0; }

int stop_signal() { return received_signal; }

}  // namespace dalle
