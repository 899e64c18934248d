// A communicator that tells its heartbeat what is begun and waited for, and that waits for the heartbeat's finding where a
// collective fails, so that a message names the rank that is the cause and not the neighbour that noticed.
#pragma once

#include "heartbeat.h"

namespace dalle::distributed {

class WatchedCommunicator : public Communicator {
 public:
  WatchedCommunicator(std::unique_ptr<Communicator> inner, std::shared_ptr<Heartbeat> heartbeat)
      : heartbeat_(std::move(heartbeat)), inner_(std::move(inner)) {}
  int rank() const override { return inner_->rank(); }
  int world_size() const override { return inner_->world_size(); }
  void all_reduce_sum(Tensor& tensor) override;
  void broadcast(Tensor& tensor, int root) override;
  Tensor all_gather(const Tensor& tensor) override;
  void barrier() override;
  void await(int root) override;
  std::unique_ptr<Communicator> subgroup(const std::vector<int>& ranks) override;
  Pending start_all_reduce_sum(Tensor tensor) override;
  Pending start_all_gather(Tensor whole, Tensor part) override;
  Pending start_reduce_scatter_sum(Tensor part, Tensor whole) override;
  void note(const std::string& place, Pace pace) override { heartbeat_->note(place, pace); }
  void fail(const std::string& message) override { heartbeat_->fail(message); }
  void leave() override { heartbeat_->leave(); }

 private:
  /// The whole of a collective, with a wait in it.
  template <class Call>
  auto waited(const char* name, const Call& call);
  template <class Call>
  Pending begun(const char* name, const Call& call);

  std::shared_ptr<Heartbeat> heartbeat_;  // outlives inner_, whose end may take long
  std::unique_ptr<Communicator> inner_;
};

}  // namespace dalle::distributed
